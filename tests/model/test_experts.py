"""A shard of experts: what it holds, what it computes, and changing it while it computes."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint.load import open_checkpoint
from model.config import Dtype
from model.experts import ExpertShard, load_experts, networks_of
from model.feed_forward import SwiGLU, swiglu
from model.linear import TILE_ROWS
from tests.checkpoints import TINY_MOE, random_tensors, write_hugging_face
from tests.running import shard_of

TENSORS = random_tensors(TINY_MOE, seed=1)

LOAD_AND_TELL_MEMORY = """
import re, sys
from pathlib import Path
import torch
from model.checkpoint.load import open_checkpoint
from model.experts import load_experts

def status_kb(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

torch.set_num_threads(1)
checkpoint = open_checkpoint(Path(sys.argv[1]))
before_kb = status_kb("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
held = list(load_experts(checkpoint, range(8), sys.argv[2]))
print(status_kb("VmRSS") - before_kb, status_kb("VmHWM") - before_kb)
"""


def expected(layer: int, expert_id: int, x_RD: Tensor) -> Tensor:
    """SwiGLU, written out."""
    prefix = f"layers.{layer}.experts.{expert_id}"
    w1, w2, w3 = (TENSORS[f"{prefix}.{name}.weight"] for name in ("w1", "w2", "w3"))
    gate_RF = x_RD @ w1.T
    return (gate_RF * torch.sigmoid(gate_RF) * (x_RD @ w3.T)) @ w2.T


def rows(num: int) -> Tensor:
    return torch.randn(num, TINY_MOE.dim, generator=torch.Generator().manual_seed(num))


def test_each_expert_computes_its_own_rows() -> None:
    x_RD = rows(7)

    y_RD = shard_of(TINY_MOE, TENSORS).compute_rows(1, x_RD, {2: (0, 3), 5: (3, 4), 6: (4, 7)})

    assert torch.allclose(y_RD[:3], expected(1, 2, x_RD[:3]), atol=1e-5)
    assert torch.allclose(y_RD[3:4], expected(1, 5, x_RD[3:4]), atol=1e-5)
    assert torch.allclose(y_RD[4:], expected(1, 6, x_RD[4:]), atol=1e-5)


def test_no_rows_give_no_rows() -> None:
    y_RD = shard_of(TINY_MOE, TENSORS).compute_rows(0, rows(0), {})

    assert y_RD.shape == (0, TINY_MOE.dim)


def test_the_experts_held_are_listed_ascending() -> None:
    assert shard_of(TINY_MOE, TENSORS, [6, 1, 3]).expert_ids == (1, 3, 6)


def test_an_empty_shard_holds_nothing() -> None:
    assert ExpertShard().expert_ids == ()


def test_a_removed_expert_is_gone_in_every_layer() -> None:
    shard = shard_of(TINY_MOE, TENSORS, [1, 3])

    shard.remove([3])

    assert shard.expert_ids == (1,)
    for layer in range(TINY_MOE.num_layers):
        with pytest.raises(KeyError):
            shard.compute_rows(layer, rows(1), {3: (0, 1)})


def test_removing_an_expert_that_is_not_held_does_no_harm() -> None:
    shard = shard_of(TINY_MOE, TENSORS, [1])

    shard.remove([7])

    assert shard.expert_ids == (1,)


def test_an_expert_is_held_only_once_all_its_layers_are_in() -> None:
    shard = shard_of(TINY_MOE, TENSORS, [1])
    held = []

    def watched() -> Iterator[SwiGLU]:
        for network in networks_of(TENSORS, TINY_MOE.num_layers, 0):
            held.append(shard.expert_ids)
            yield network

    shard.add(0, watched())

    assert held == [(1,)] * TINY_MOE.num_layers
    assert shard.expert_ids == (0, 1)


def test_an_expert_that_fails_to_load_is_not_held() -> None:
    shard = ExpertShard()
    without_last = {name: t for name, t in TENSORS.items() if not name.startswith("layers.2.")}

    with pytest.raises(KeyError):
        shard.add(3, networks_of(without_last, TINY_MOE.num_layers, 3))

    assert shard.expert_ids == ()


def test_adding_an_expert_leaves_the_others_as_they_are() -> None:
    shard = shard_of(TINY_MOE, TENSORS, [1])
    x_RD = rows(4)
    before_RD = shard.compute_rows(2, x_RD, {1: (0, 4)})

    shard.add(5, networks_of(TENSORS, TINY_MOE.num_layers, 5))

    assert torch.equal(shard.compute_rows(2, x_RD, {1: (0, 4)}), before_RD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("hidden_dim", [96, 1000])
def test_tiled_networks_give_a_row_the_same_bits_whatever_rows_are_with_it(
    dtype: torch.dtype, hidden_dim: int
) -> None:
    w1, w2, w3 = (
        torch.randn(shape, generator=torch.Generator().manual_seed(7)).to(dtype)
        for shape in ((hidden_dim, 64), (64, hidden_dim), (hidden_dim, 64))
    )
    network = swiglu(w1, w2, w3, tile_rows=TILE_ROWS)
    x_RD = rows(70).to(dtype)
    alone_RD = torch.cat([network(row_1D) for row_1D in torch.split(x_RD, 1)])

    for num_rows in range(1, 71):
        assert torch.equal(network(x_RD[-num_rows:]), alone_RD[-num_rows:]), num_rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_experts_of_a_checkpoint_compute_what_its_tensors_do(tmp_path: Path, dtype: Dtype) -> None:
    checkpoint = open_checkpoint(write_hugging_face(tmp_path, TINY_MOE, seed=1))
    shard = ExpertShard()

    for expert_id, networks in load_experts(checkpoint, [6, 2], dtype):
        shard.add(expert_id, networks)

    assert shard.expert_ids == (2, 6)
    x_RD = rows(5)
    y_RD = shard.compute_rows(2, x_RD.to(getattr(torch, dtype)), {2: (0, 2), 6: (2, 5)}).float()
    tolerance = 1e-5 if dtype == "float32" else 3e-2
    assert torch.allclose(y_RD[:2], expected(2, 2, x_RD[:2]), atol=tolerance)
    assert torch.allclose(y_RD[2:], expected(2, 6, x_RD[2:]), atol=tolerance)


def test_loading_tells_how_far_it_is_after_each_network(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_hugging_face(tmp_path, TINY_MOE))
    told: list[tuple[int, int]] = []

    for _ in load_experts(checkpoint, [0, 1], "float32", progress=lambda *done: told.append(done)):
        pass

    network_bytes = 3 * TINY_MOE.dim * TINY_MOE.hidden_dim * 4
    assert told == [(number * network_bytes, 6 * network_bytes) for number in range(1, 7)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the memory so")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_experts_never_holds_their_weights_twice(tmp_path: Path, dtype: Dtype) -> None:
    """In a process of its own, whose peak is known: eight networks of 25 MB (bfloat16)."""
    config = replace(TINY_MOE, dim=1024, hidden_dim=4096, num_layers=1, dtype="bfloat16")
    write_hugging_face(tmp_path, config, dtype="bfloat16")

    done = subprocess.run(
        [sys.executable, "-c", LOAD_AND_TELL_MEMORY, str(tmp_path), dtype],
        capture_output=True,
        text=True,
        check=True,
    )

    after_mb, peak_mb = (int(word) / 1e3 for word in done.stdout.split())
    network_mb = 3 * config.dim * config.hidden_dim * (2 if dtype == "bfloat16" else 4) / 1e6
    assert 7 * network_mb < after_mb < 9.5 * network_mb
    assert peak_mb < 12 * network_mb
