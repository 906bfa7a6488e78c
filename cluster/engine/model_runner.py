"""One forward pass on the device: the model, its caches, and whoever computes its experts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.batch import Chunk, pack
from model.cache import KVCache, cache_slots
from model.transformer import Transformer
from routing.experts import ExpertCall, Experts, PendingCall, drive
from routing.gating import Routes

# Letters: B chunks, V vocabulary, T tokens, E experts, D model dimension.

PROBE_TOKEN_ID = 1


class ModelRunner:
    """A transformer and the experts that its forward passes are driven with."""

    def __init__(self, transformer: Transformer, experts: Experts, num_micro_batches: int) -> None:
        self.config = transformer.config
        self._transformer = transformer
        self._experts = experts
        self._num_micro_batches = num_micro_batches

    def slots_for(self, max_tokens: int) -> int:
        """Cache slots of a sequence of at most `max_tokens`."""
        return cache_slots(self.config, max_tokens)

    def new_cache(self, max_tokens: int) -> KVCache:
        """An empty cache for a sequence of at most `max_tokens`."""
        return KVCache(self.config, max_tokens, self._transformer.dtype, self._transformer.device)

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Compute the chunks, in micro-batches; (B, V) logits of each chunk's last token."""
        size = -(-len(chunks) // self._num_micro_batches)
        parts = [chunks[first : first + size] for first in range(0, len(chunks), size)]
        forwards = [
            self._transformer.forward(pack(part, self._transformer.device)) for part in parts
        ]
        return torch.cat(drive(forwards, self._experts))

    @torch.inference_mode()
    def probe(self) -> None:
        """Send a real token through every layer and every expert.

        Raises:
            ExpertUnavailable: an expert does not answer.
            ArithmeticError: some output is not finite.
        """
        batch = pack([Chunk(self.new_cache(1), [PROBE_TOKEN_ID])], self._transformer.device)
        experts = _EveryExpert(self._experts, self.config.num_experts)
        [logits_1V] = drive([self._transformer.forward(batch)], experts)
        _check_finite(logits_1V, "logits")


class _EveryExpert:
    """Computes each call as asked and, beside it, on every expert of the layer."""

    def __init__(self, experts: Experts, num_experts: int) -> None:
        self._experts = experts
        self._num_experts = num_experts

    def start(self, call: ExpertCall) -> PendingCall:
        expert_ids_E1 = torch.arange(self._num_experts, device=call.x_TD.device).unsqueeze(1)
        routes = Routes(expert_ids_E1, torch.ones_like(expert_ids_E1, dtype=torch.float32))
        x_ED = call.x_TD[:1].expand(self._num_experts, -1)
        output_ED = self._experts.start(ExpertCall(call.layer, x_ED, routes)).result()
        _check_finite(output_ED, f"experts of layer {call.layer}")
        return self._experts.start(call)


def _check_finite(x: Tensor, what: str) -> None:
    if not bool(torch.isfinite(x).all()):
        raise ArithmeticError(f"{what}: not finite")
