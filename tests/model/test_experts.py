"""A shard of experts: what it holds, what it computes, and changing it while it computes."""

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor

from model.experts import ExpertShard
from tests.checkpoints import TINY_MOE, random_tensors
from tests.running import shard_of

TENSORS = random_tensors(TINY_MOE, seed=1)


def expected(layer: int, expert_id: int, x_RD: Tensor) -> Tensor:
    """SwiGLU, written out."""
    prefix = f"layers.{layer}.experts.{expert_id}"
    w1, w2, w3 = (TENSORS[f"{prefix}.{name}.weight"] for name in ("w1", "w2", "w3"))
    gate_RF = x_RD @ w1.T
    return (gate_RF * torch.sigmoid(gate_RF) * (x_RD @ w3.T)) @ w2.T


def rows(num: int) -> Tensor:
    return torch.randn(num, TINY_MOE.dim, generator=torch.Generator().manual_seed(num))


class WatchedWeights(Mapping[str, Tensor]):
    """Notes what the shard says it holds whenever a weight is taken out."""

    def __init__(self, shard: ExpertShard) -> None:
        self.seen: list[tuple[str, tuple[int, ...]]] = []
        self._shard = shard

    def __getitem__(self, name: str) -> Tensor:
        self.seen.append((name, self._shard.expert_ids))
        return TENSORS[name]

    def __iter__(self) -> Iterator[str]:
        return iter(TENSORS)

    def __len__(self) -> int:
        return len(TENSORS)


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
    shard = ExpertShard()
    weights = WatchedWeights(shard)

    shard.add(weights, TINY_MOE.num_layers, [0, 1])

    assert shard.expert_ids == (0, 1)
    assert {held for name, held in weights.seen if ".experts.0." in name} == {()}
    assert {held for name, held in weights.seen if ".experts.1." in name} == {(0,)}


def test_adding_an_expert_leaves_the_others_as_they_are() -> None:
    shard = shard_of(TINY_MOE, TENSORS, [1])
    x_RD = rows(4)
    before_RD = shard.compute_rows(2, x_RD, {1: (0, 4)})

    shard.add(TENSORS, TINY_MOE.num_layers, [0, 5])

    assert torch.equal(shard.compute_rows(2, x_RD, {1: (0, 4)}), before_RD)
