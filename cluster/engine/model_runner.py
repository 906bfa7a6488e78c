"""One forward pass on the device: the model, its cache, and whoever computes its experts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cluster.config import EngineConfig
from model.batch import Chunk, pack
from model.cache import PagedCache
from model.transformer import Transformer
from routing.experts import ExpertCall, Experts, Forward, PendingCall, drive
from routing.gating import Routes

# Letters: B chunks, V vocabulary, T tokens, E experts, D model dimension.

PROBE_TOKEN_ID = 1


class ModelRunner:
    """A transformer, its KV cache, and the experts that its forward passes are driven with."""

    def __init__(self, transformer: Transformer, experts: Experts, config: EngineConfig) -> None:
        self.config = transformer.config
        self._transformer = transformer
        self._experts = experts
        self._num_micro_batches = config.num_micro_batches
        self._cache = PagedCache(
            transformer.config,
            config.num_blocks,
            config.block_tokens,
            transformer.dtype,
            transformer.device,
        )

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk], copies: Sequence[tuple[int, int]] = ()) -> Tensor:
        """Compute the chunks, in micro-batches; (B, V) logits of each chunk's last token.

        Args:
            copies: blocks of the cache to copy first, (from, to).
        """
        self._cache.copy(copies)
        size = -(-len(chunks) // self._num_micro_batches)
        parts = [chunks[first : first + size] for first in range(0, len(chunks), size)]
        return torch.cat(drive([self._forward(part) for part in parts], self._experts))

    @torch.inference_mode()
    def probe(self) -> None:
        """Send a real token through every layer and every expert.

        Raises:
            ExpertUnavailable: an expert does not answer.
            ArithmeticError: some output is not finite.
        """
        chunk = Chunk([PROBE_TOKEN_ID], 0, [self._cache.probe_block])
        experts = _EveryExpert(self._experts, self.config.num_experts)
        [logits_1V] = drive([self._forward([chunk])], experts)
        check_finite(logits_1V, "logits")

    def _forward(self, chunks: Sequence[Chunk]) -> Forward[Tensor]:
        batch = pack(chunks, self._cache, self._transformer.planner)
        return self._transformer.forward(batch, self._cache)


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
        check_finite(output_ED, f"experts of layer {call.layer}")
        return self._experts.start(call)


def check_finite(x: Tensor, what: str) -> None:
    """Look for numbers that are none, in one pass: they all come through in the range.

    Raises:
        ArithmeticError: there is one, or an infinite one; names `what`.
    """
    low, high = x.aminmax()
    if not bool((high - low).isfinite()):
        raise ArithmeticError(f"{what}: not finite")
