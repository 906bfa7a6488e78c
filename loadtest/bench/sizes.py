"""Shapes of the synthetic models, and what a forward pass through one must read and compute.

Pure arithmetic. A parameter is one number of a weight matrix; norms are left out, being nothing.
"""

from dataclasses import dataclass

BYTES_PER_PARAMETER = 2  # bfloat16


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """The shape of a Mixtral.

    Attributes:
        decode_tokens: how many tokens a decode cell generates with a model of this size.
    """

    name: str
    hidden: int
    ffn: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    num_experts: int = 8
    top_k: int = 2
    vocab_size: int = 32_000
    decode_tokens: int = 64

    @property
    def head_dim(self) -> int:
        """Dimensions of one attention head."""
        return self.hidden // self.num_heads

    @property
    def shared_parameters(self) -> int:
        """Of a layer, for every token: attention and gate."""
        attention = 2 * self.hidden * self.head_dim * (self.num_heads + self.num_kv_heads)
        return attention + self.hidden * self.num_experts

    @property
    def expert_parameters(self) -> int:
        """Of one expert in one layer."""
        return 3 * self.hidden * self.ffn

    @property
    def head_parameters(self) -> int:
        """Of the matrix that gives the logits."""
        return self.hidden * self.vocab_size

    @property
    def parameters(self) -> int:
        """Of the whole model, embeddings included."""
        layer = self.shared_parameters + self.num_experts * self.expert_parameters
        return self.num_layers * layer + 2 * self.head_parameters

    def experts_touched(self, batch: int) -> float:
        """Expected number of a layer's experts that a step of `batch` tokens needs.

        With 8 experts, 2 a token: 2 of 8 for one token, 5.47 for four, 7.92 for sixteen.
        """
        missed = 1 - self.top_k / self.num_experts
        return self.num_experts * (1 - missed**batch)

    def decode_bytes(self, batch: int) -> float:
        """Weights that a decode step of `batch` tokens must read."""
        experts = self.experts_touched(batch) * self.expert_parameters
        layers = self.num_layers * (self.shared_parameters + experts)
        return BYTES_PER_PARAMETER * (layers + self.head_parameters)

    def operations(self, num_tokens: int, num_logits: int) -> float:
        """Multiplications and additions of matrix products; attention's own are left out."""
        layer = self.shared_parameters + self.top_k * self.expert_parameters
        return 2.0 * (num_tokens * self.num_layers * layer + num_logits * self.head_parameters)


SIZES = {
    size.name: size
    for size in (
        # For trying the command out: seconds, and numbers that mean nothing.
        Size(name="tiny", hidden=256, ffn=512, num_layers=2, num_heads=4, num_kv_heads=2),
        Size(name="mid", hidden=1_024, ffn=3_584, num_layers=8, num_heads=16, num_kv_heads=4),
        # Two layers of Mixtral 8x7B as it is.
        Size(
            name="real2",
            hidden=4_096,
            ffn=14_336,
            num_layers=2,
            num_heads=32,
            num_kv_heads=8,
            decode_tokens=32,
        ),
    )
}
