"""One settings object, from Serve arguments or from flags; checked before anything starts."""

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.config import ClusterConfig, EngineConfig, LinkKind
from model.config import Dtype, ModelConfig
from routing.remote_experts import Patience
from routing.wire import DTYPE_BYTES, MAX_PAYLOAD_BYTES

DEMO_CHECKPOINT = Path(__file__).resolve().parent.parent / "model" / "demo" / "checkpoint"


class SettingsError(Exception):
    """Settings that do not fit together, or do not fit the model."""


class Settings(BaseModel):
    """What a user may set. `serve run deploy.app:build model=DIR expert_hosts=4` fills it too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Path = Field(DEMO_CHECKPOINT, description="checkpoint folder, same path on every node")
    model_name: str | None = Field(None, description="name in the API; default: folder's name")
    routers: int = Field(1, ge=1, description="router actors")
    max_routers: int | None = Field(None, ge=1, description="autoscale routers up to this many")
    expert_hosts: int = Field(2, ge=0, description="expert hosts; 0: experts inside the routers")
    slots_per_host: int | None = Field(
        None, ge=1, description="experts a host can hold; default: all, on GPUs its share and one"
    )
    hosts_per_node: int | None = Field(None, ge=1, description="most expert hosts on one node")
    dtype: Dtype | None = Field(None, description="default: the checkpoint's own")
    device: Literal["cpu", "cuda"] = Field("cpu", description="cuda: each actor on its GPU")
    gpus_per_host: float = Field(1.0, gt=0, description="share of a GPU, with device cuda")
    gpus_per_router: float = Field(1.0, gt=0, description="share of a GPU, with device cuda")
    cpus_per_host: float = Field(0.0, ge=0, description="CPUs that Ray reserves for a host")
    cpus_per_router: float = Field(0.0, ge=0, description="CPUs that Ray reserves for a router")
    threads: int | None = Field(None, ge=1, description="torch threads of each router and host")
    link: LinkKind = Field("auto", description="auto: AF_UNIX within a node, TCP across nodes")
    max_ingress: int | None = Field(None, ge=1, description="autoscale the ingress up to this many")
    max_running: int = Field(64, ge=1, description="sequences that share a step")
    max_waiting: int = Field(256, ge=1, description="requests in a router's queue")
    step_tokens: int = Field(512, ge=1, description="tokens of one step")
    kv_tokens: int = Field(65_536, ge=1, description="positions in a router's KV cache")
    deterministic: bool = Field(False, description="the same logits to the bit in any company")
    micro_batches: int = Field(1, ge=1, description="parts of a step that overlap")
    reply_timeout_s: float = Field(5.0, gt=0, description="for one answer of an expert host")
    owner_timeout_s: float = Field(30.0, gt=0, description="for an expert that no host serves")
    leave_timeout_s: float = Field(4.0, gt=0, description="for a host to hand its experts over")

    @model_validator(mode="after")
    def _check_counts(self) -> "Settings":
        if self.max_routers is not None and self.max_routers < self.routers:
            raise ValueError(f"max_routers: got {self.max_routers}, want at least routers")
        return self

    @property
    def served_name(self) -> str:
        """The model's name in the API."""
        if self.model_name is not None:
            return self.model_name
        return "mixray-demo" if self.model == DEMO_CHECKPOINT else self.model.resolve().name

    def num_hosts(self, model: ModelConfig) -> int:
        """Expert hosts that the model needs: none if it is dense."""
        return self.expert_hosts if model.is_moe else 0

    def num_slots(self, model: ModelConfig) -> int:
        """Experts that one host can hold."""
        if self.slots_per_host is not None:
            return self.slots_per_host
        if self.device == "cpu" or self.expert_hosts == 0:
            return model.num_experts
        # A GPU has room for its share, and for one expert of a host that died.
        share = -(-model.num_experts // self.expert_hosts)
        return min(model.num_experts, share + 1)

    def num_threads(self, model: ModelConfig) -> int:
        """Torch threads of each router and expert host."""
        num_processes = self.routers + self.num_hosts(model)
        return self.threads or max(1, (os.cpu_count() or 1) // num_processes)

    def cluster_config(self, model: ModelConfig) -> ClusterConfig:
        """What the actors are born from.

        Raises:
            SettingsError: the hosts are too few or too small for the model's experts.
        """
        num_hosts = self.num_hosts(model)
        slots = self.num_slots(model)
        if num_hosts and num_hosts * slots < model.num_experts:
            raise SettingsError(
                f"{num_hosts} hosts of {slots} slots hold {num_hosts * slots} experts; "
                f"the model has {model.num_experts}"
            )
        dtype = self.dtype or model.dtype
        max_step_tokens = MAX_PAYLOAD_BYTES // (model.dim * DTYPE_BYTES[dtype])
        if self.step_tokens > max_step_tokens:
            raise SettingsError(
                f"step_tokens: got {self.step_tokens}, want at most {max_step_tokens}, "
                "so that one expert's rows fit into a frame"
            )
        return ClusterConfig(
            model_dir=str(self.model.resolve()),
            dtype=dtype,
            device=self.device,
            has_expert_hosts=num_hosts > 0,
            slots_per_host=slots,
            link=self.link,
            deterministic=self.deterministic,
            engine=EngineConfig(
                max_running=self.max_running,
                max_waiting=self.max_waiting,
                step_tokens=self.step_tokens,
                kv_tokens=self.kv_tokens,
                num_micro_batches=self.micro_batches,
            ),
            patience=Patience(reply_s=self.reply_timeout_s, owner_s=self.owner_timeout_s),
            leave_timeout_s=self.leave_timeout_s,
        )
