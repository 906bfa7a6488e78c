import pytest

from loadtest.bench.floor import Limits, floor_tokens_per_s
from loadtest.bench.sizes import SIZES
from tests.loadtest.bench.records import DECODE, SERVER, SIZE, cell

# By hand, for the toy: attention 2 * 4 * 2 * (2 + 1) = 48 and gate 16 in a layer, an expert
# 3 * 4 * 8 = 96, the head 40.


def test_parameters_are_counted_by_hand() -> None:
    assert (SIZE.shared_parameters, SIZE.expert_parameters, SIZE.head_parameters) == (64, 96, 40)
    assert SIZE.parameters == 2 * (64 + 4 * 96) + 2 * 40


def test_mid_and_real2_have_the_sizes_they_are_said_to_have() -> None:
    assert SIZES["mid"].parameters == pytest.approx(0.79e9, rel=0.01)
    assert SIZES["real2"].parameters == pytest.approx(3.17e9, rel=0.01)


def test_more_tokens_touch_more_experts_but_never_more_than_there_are() -> None:
    assert [SIZE.experts_touched(batch) for batch in (1, 2)] == [2, 3]
    assert SIZES["mid"].experts_touched(4) == pytest.approx(5.47, abs=0.01)
    assert SIZE.experts_touched(100) == pytest.approx(4)


def test_a_decode_step_reads_the_weights_it_touches() -> None:
    assert SIZE.decode_bytes(1) == 2 * (2 * (64 + 2 * 96) + 40)
    assert SIZE.decode_bytes(2) == 2 * (2 * (64 + 3 * 96) + 40) == 1488


def test_decode_is_bound_by_reading_where_memory_is_slow() -> None:
    # 1,488 bytes in 1 s give each of two sequences a token.
    assert floor_tokens_per_s(SIZE, DECODE, Limits(1488.0, 1e9)) == pytest.approx(2.0)


def test_decode_is_bound_by_products_where_they_are_slow() -> None:
    # Two tokens are 2 * 2 * (2 * 256 + 40) = 2,208 operations.
    assert floor_tokens_per_s(SIZE, DECODE, Limits(1e9, 1104.0)) == pytest.approx(1.0)


def test_prefill_counts_the_prompt_and_one_row_of_logits() -> None:
    # Five tokens are 2 * (5 * 2 * 256 + 40) = 5,200 operations.
    assert floor_tokens_per_s(SIZE, cell("prefill"), Limits(1e9, 5200.0)) == pytest.approx(5.0)


@pytest.mark.parametrize("kind", ["burst", "server"])
def test_streams_that_come_at_once_first_prefill_and_then_decode(kind: str) -> None:
    at_once = SERVER if kind == "server" else cell("burst")

    # Two prompts of 2 s, four steps of 2 s, eight tokens.
    assert floor_tokens_per_s(SIZE, at_once, Limits(744.0, 2600.0)) == pytest.approx(8 / 12)
