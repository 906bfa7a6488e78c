"""What a cluster is made of, in frozen objects that every actor is born from."""

from dataclasses import dataclass, field, fields
from typing import Literal

from model.config import Dtype
from model.linear import TILE_ROWS
from routing.remote_experts import Patience

LinkKind = Literal["auto", "unix", "tcp"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Limits of one router's engine.

    Attributes:
        max_running: sequences that share a step.
        max_waiting: requests in the queue; one more is refused.
        step_tokens: tokens of one step, decode and prompt chunks together.
        kv_tokens: positions that the KV cache has room for, at least; it has whole blocks.
        block_tokens: positions of one block of it.
        num_micro_batches: parts of a step whose attention and experts overlap.
    """

    max_running: int = 64
    max_waiting: int = 256
    step_tokens: int = 512
    kv_tokens: int = 65_536
    block_tokens: int = 32
    num_micro_batches: int = 1

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache."""
        return -(-self.kv_tokens // self.block_tokens)

    def __post_init__(self) -> None:
        for limit in fields(self):
            if (value := getattr(self, limit.name)) < 1:
                raise ValueError(f"{limit.name}: got {value}, want a number from 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """What routers and expert hosts of one application have in common.

    How many of them there are is not in here, nor how many threads each has: those change while
    the application runs, without a restart.

    Attributes:
        model_dir: a checkpoint folder, at the same path on every node.
        dtype: of weights, activations, caches and rows on the wire.
        device: torch's name; "cuda" is the GPU that Ray gives the actor.
        has_expert_hosts: False keeps the experts inside the routers.
        slots_per_host: experts that one host can hold.
        leave_timeout_s: how long a host that is to go waits for others to take its experts.
        link: "auto" is AF_UNIX within a node and TCP across nodes.
        deterministic: the logits of a request are bit-identical whatever else is in the batch,
            wherever experts sit, and however its prompt was cut into chunks.
    """

    model_dir: str
    dtype: Dtype
    device: str = "cpu"
    has_expert_hosts: bool = True
    slots_per_host: int
    link: LinkKind = "auto"
    deterministic: bool = False
    leave_timeout_s: float = 4.0
    engine: EngineConfig = field(default_factory=EngineConfig)
    patience: Patience = field(default_factory=Patience)

    @property
    def tile_rows(self) -> int | None:
        """Rows of every product; None where it has as many as there are."""
        return TILE_ROWS if self.deterministic else None
