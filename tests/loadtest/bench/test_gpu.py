"""What of the GPU benchmark a CPU can tell; nothing here needs a GPU."""

import pytest
import torch
from typer import Exit

from loadtest.bench.cells import LIMITS, LIMITS_NAME, TOKENS_PER_S
from loadtest.bench.engine_adapter import random_engine
from loadtest.bench.floor import PRODUCTS, READ
from loadtest.bench.gpu import (
    CELLS,
    ENGINE_LIMITS,
    MIXTRAL_8X7B,
    NAME,
    NoRoom,
    card_limits,
    fitting,
    main,
    measure_round,
    note,
    setting_of,
)
from loadtest.bench.record import BenchRecord
from loadtest.bench.table import page
from tests.loadtest.bench.records import SIZE, cell

CPU = torch.device("cpu")


def test_mixtral_8x7b_has_46_7_billion_parameters() -> None:
    assert MIXTRAL_8X7B.parameters == pytest.approx(46.7e9, rel=0.001)


def test_a_card_that_is_large_enough_gets_every_layer() -> None:
    assert fitting(MIXTRAL_8X7B, 140 * 10**9) == MIXTRAL_8X7B


def test_a_smaller_card_gets_as_many_layers_as_fit() -> None:
    # A layer has 1.451 billion parameters, both heads 0.262: 0.8 * 24 GB holds 9.6 billion.
    size = fitting(MIXTRAL_8X7B, 24 * 10**9)

    assert (size.num_layers, size.name) == (6, "mixtral-8x7b, 6 layers")
    assert 2 * size.parameters <= 0.8 * 24e9


def test_a_card_without_room_for_a_layer_is_refused() -> None:
    with pytest.raises(NoRoom, match=r"3.0 GB are free; a layer takes 2.9 GB"):
        fitting(MIXTRAL_8X7B, 3 * 10**9)


def test_every_cell_fits_into_the_cache_and_every_prompt_into_one_step() -> None:
    for each in CELLS:
        tokens = each.batch * (each.prompt_tokens + each.new_tokens)
        assert tokens <= ENGINE_LIMITS.kv_tokens
        assert each.prompt_tokens <= ENGINE_LIMITS.step_tokens
        assert each.batch <= ENGINE_LIMITS.max_running


def test_a_round_measures_the_device_and_every_cell() -> None:
    cells = (cell("decode"), cell("prefill"))
    engine, vocab_size = random_engine(SIZE, ENGINE_LIMITS, context_tokens=64)
    record = BenchRecord(setting=setting_of(SIZE, cells, "a card"))

    note(record, 1, LIMITS_NAME, LIMITS, card_limits(CPU, copied_bytes=1_000, rows=8))
    measure_round(record, 1, engine, vocab_size)

    limits, decode, prefill = record.samples
    assert min(limits.values[READ] + limits.values[PRODUCTS]) > 0
    assert min(decode.values[TOKENS_PER_S] + prefill.values[TOKENS_PER_S]) > 0
    assert f"{NAME} / floor" in page(record)


def test_without_a_cuda_device_it_says_so_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(Exit) as caught:
        main()

    assert caught.value.exit_code == 1
    assert capsys.readouterr().err == "no CUDA device\n"
