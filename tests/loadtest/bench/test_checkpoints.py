from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.bench import gguf
from loadtest.bench.checkpoints import ensure_checkpoint, is_complete, parts_of
from model.checkpoint.load import open_checkpoint
from tests.loadtest.bench.records import SIZE

# Heads of two dimensions are too small for nobody here.
PARAMETERS = SIZE.parameters + 4 * (1 + 2 * SIZE.num_layers)


def test_a_checkpoint_is_one_that_mixray_opens(tmp_path: Path) -> None:
    folder = ensure_checkpoint(tmp_path, SIZE)

    config = open_checkpoint(folder).config

    assert (config.dim, config.num_layers, config.num_experts, config.top_k) == (4, 2, 4, 2)


def test_its_tensors_have_the_parameters_that_are_counted_and_the_norms() -> None:
    assert sum(part.num_bytes for part in parts_of(SIZE)) == 2 * PARAMETERS


def test_it_is_the_same_wherever_it_is_made(tmp_path: Path) -> None:
    digests = {open_checkpoint(ensure_checkpoint(tmp_path / name, SIZE)).digest for name in "ab"}

    assert len(digests) == 1


def test_it_is_written_once(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    for _ in range(2):
        ensure_checkpoint(tmp_path, SIZE, lambda done, total: told.append((done, total)))

    assert told[-1] == (2 * PARAMETERS, 2 * PARAMETERS)
    assert told.count(told[-1]) == 1


def test_another_model_or_half_of_one_is_written_anew(tmp_path: Path) -> None:
    folder = ensure_checkpoint(tmp_path, SIZE)
    assert is_complete(folder, SIZE)

    assert not is_complete(folder, replace(SIZE, ffn=16))
    next(folder.glob("*.safetensors")).write_bytes(b"half")
    assert not is_complete(folder, SIZE)


def test_a_gguf_file_that_is_there_is_not_converted_again(tmp_path: Path) -> None:
    there = tmp_path / "mid.gguf"
    there.touch()

    assert gguf.ensure_gguf(tmp_path / "mid", None, None, tmp_path / "log") == there


def test_without_a_converter_there_is_no_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(gguf.ConversionFailed, match="no --llama-convert"):
        gguf.ensure_gguf(tmp_path / "mid", None, None, tmp_path / "log")
