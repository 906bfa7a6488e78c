"""mixray's engine as contestants run it: real processes, on a model that is written here."""

from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.bench.cells import TOKENS_PER_S, Cell
from loadtest.bench.checkpoints import TOKENIZER, ensure_checkpoint
from loadtest.bench.contestants import Contestant, Environments, chosen, everybody
from loadtest.bench.link_adapter import FixedDirectory, HostLost, experts_of_hosts
from loadtest.bench.sizes import SIZES
from loadtest.bench.turn import TurnResult, Ways, take_turn
from tests.loadtest.bench.records import cell

CELLS = (cell("decode"), cell("prefill"), cell("burst", batch=3))
NUM_HOSTS = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return ensure_checkpoint(folder, replace(SIZES["tiny"], vocab_size=1_000))


def turn_of(name: str, model: Path, log: Path, cells: tuple[Cell, ...] = CELLS) -> TurnResult:
    ways = Ways(
        threads=1,
        num_hosts=NUM_HOSTS,
        router_threads=1,
        host_threads=1,
        timeout_s=60.0,
        tokenizer=TOKENIZER,
        log=log,
    )
    return take_turn(contestant_of(name, model), cells, 1, ways, lambda answer: None)


def contestant_of(name: str, model: Path) -> Contestant:
    places = Environments(model=model, threads=1, num_hosts=NUM_HOSTS, spin_count="0")
    [found] = chosen(everybody(places)[0], [name])
    return found


@pytest.mark.parametrize(("name", "num_processes"), [("mixray-local", 1), ("mixray-linked", 3)])
def test_an_engine_measures_every_cell(
    name: str, num_processes: int, model: Path, tmp_path: Path
) -> None:
    result = turn_of(name, model, tmp_path / "log")

    assert result.error is None, (tmp_path / "log").read_text()
    assert [answer.cell for answer in result.answers] == ["decode-2", "prefill-5", "burst-3"]
    assert all(answer.values[TOKENS_PER_S][0] > 0 for answer in result.answers)
    assert result.num_processes == num_processes
    assert result.memory_bytes > 100e6


def test_an_engine_without_its_model_fails_and_says_how(tmp_path: Path) -> None:
    result = turn_of("mixray-local", tmp_path / "nothing", tmp_path / "log")

    assert result.error == "ended with status 1"
    assert "CheckpointError" in (tmp_path / "log").read_text()


def test_experts_are_dealt_out_in_turn() -> None:
    assert experts_of_hosts(8, 3) == [(0, 3, 6), (1, 4, 7), (2, 5)]


def test_a_host_that_is_lost_ends_the_benchmark() -> None:
    with pytest.raises(HostLost, match="host-1"):
        FixedDirectory(()).report_lost("host-1")
