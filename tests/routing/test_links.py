"""The same greedy tokens for local experts and for every kind of link and number of hosts."""

import os

import pytest

from model.transformer import Transformer
from routing.experts import LocalExperts
from tests.checkpoints import TINY_MOE, random_tensors
from tests.routing.hosts import MemoryCluster, socket_experts
from tests.running import build, generate

TENSORS = random_tensors(TINY_MOE, 3)
PROMPT_IDS = [1, 40, 7, 250, 99, 3, 180]
NUM_TOKENS = 64


@pytest.fixture(scope="module")
def model() -> tuple[Transformer, LocalExperts]:
    return build(TINY_MOE, TENSORS)


@pytest.fixture(scope="module")
def local_token_ids(model: tuple[Transformer, LocalExperts]) -> list[int]:
    """What local experts give."""
    token_ids = generate(*model, PROMPT_IDS, NUM_TOKENS)
    assert len(set(token_ids)) > 20
    return token_ids


@pytest.mark.parametrize("num_hosts", [1, 2, 3, 5, 8])
def test_memory_links_give_the_tokens_of_local_experts(
    model: tuple[Transformer, LocalExperts], local_token_ids: list[int], num_hosts: int
) -> None:
    remote = MemoryCluster(TINY_MOE, TENSORS, num_hosts)

    token_ids = generate(model[0], remote.experts, PROMPT_IDS, NUM_TOKENS)

    remote.pool.close()
    assert token_ids == local_token_ids


@pytest.mark.parametrize("num_hosts", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(
    "address", ["tcp:127.0.0.1:0", f"unix:mixray-links-{os.getpid()}-{{}}"], ids=["tcp", "unix"]
)
def test_sockets_give_the_tokens_of_local_experts(
    model: tuple[Transformer, LocalExperts],
    local_token_ids: list[int],
    address: str,
    num_hosts: int,
) -> None:
    with socket_experts(TINY_MOE, TENSORS, num_hosts, address) as experts:
        token_ids = generate(model[0], experts, PROMPT_IDS, NUM_TOKENS)

    assert token_ids == local_token_ids
    assert experts.counters.calls == NUM_TOKENS * TINY_MOE.num_layers
    assert experts.counters.resent == 0
