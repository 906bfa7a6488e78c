"""Memory of a model of Mixtral 8x7B's true layer sizes, served by a router and two hosts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cluster.handle import connect
from model.checkpoint.names import expected_shapes
from model.config import ModelConfig
from tests.checkpoints import (
    copy_mixtral_tokenizer,
    hugging_face_config,
    hugging_face_name,
    write_json,
)
from tests.serving import deploy, ray_with_serve, stream_ids

pytestmark = pytest.mark.slow

TWO_LAYERS_OF_8X7B = ModelConfig(
    dim=4096,
    num_layers=2,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    hidden_dim=14_336,
    vocab_size=32_000,
    norm_eps=1e-5,
    rope_theta=1e6,
    context_tokens=32_768,
    num_experts=8,
    top_k=2,
    dtype="bfloat16",
)
GIB = 2**30


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6.3 GB in two shards. The numbers repeat: only the amount of memory matters here."""
    folder = tmp_path_factory.mktemp("big")
    config = TWO_LAYERS_OF_8X7B
    noise = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()
    weight_map: dict[str, str] = {}
    num_bytes = 0
    for number in (0, 1):
        file = f"model-{number + 1:05}-of-00002.safetensors"
        tensors = {
            hugging_face_name(name): repeated(noise, shape)
            for name, shape in expected_shapes(config).items()
            if (f"layers.{number}." in name) or (number == 0 and "layers." not in name)
        }
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "config.json", hugging_face_config(config))
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": num_bytes}, "weight_map": weight_map},
    )
    copy_mixtral_tokenizer(folder)
    return folder


def repeated(noise: Tensor, shape: tuple[int, ...]) -> Tensor:
    num_values = torch.Size(shape).numel()
    times = -(-num_values // len(noise))
    return noise.repeat(times)[:num_values].view(shape).contiguous()


def proportional_bytes(pid: int) -> int:
    """Resident memory in which a page shared by n processes counts as 1/n (Linux' Pss)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss")


@pytest.fixture(scope="module")
def url(checkpoint: Path) -> Iterator[str]:
    with ray_with_serve() as url:
        deploy(checkpoint, expert_hosts=2, threads=1, kv_tokens=4_096)
        yield url


def test_router_and_hosts_together_hold_the_weights_once(url: str, checkpoint: Path) -> None:
    weights_bytes = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    model = checkpoint.name

    token_ids, is_done = stream_ids(
        url, model=model, prompt=list(range(1, 300)), max_tokens=8, temperature=0, ignore_eos=True
    )

    status = connect().status()
    pids = [actor["pid"] for actor in status["expert_hosts"] + status["routers"]]
    resident_bytes = sum(proportional_bytes(pid) for pid in pids)
    print(f"weights {weights_bytes / GIB:.2f} GiB, resident {resident_bytes / GIB:.2f} GiB")
    assert is_done and len(token_ids) == 8 and len(pids) == 3
    assert weights_bytes > 6.2e9
    assert weights_bytes * 0.9 < resident_bytes < 1.15 * weights_bytes + 1.5e9
