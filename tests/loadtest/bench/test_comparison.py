from loadtest.bench.cells import TOKENS_PER_S
from loadtest.bench.comparison import FLOOR, Spread, figures, memory_bytes, ratios
from tests.loadtest.bench.records import BURST, DECODE, sample, small_record


def test_a_figure_of_a_round_is_the_median_of_its_samples() -> None:
    record = small_record()
    record.samples.append(sample(3, "rival", DECODE, 1.0))
    record.samples[-1].values[TOKENS_PER_S] += [9.0, 3.0]

    assert figures(record, "rival", DECODE, TOKENS_PER_S) == {1: 0.25, 3: 3.0}


def test_the_floor_is_computed_from_the_limits_of_each_round() -> None:
    assert figures(small_record(), FLOOR, DECODE, TOKENS_PER_S) == {1: 1.0, 2: 2.0}


def test_only_what_ran_in_the_same_round_is_divided() -> None:
    record = small_record()
    linked, rival = (
        figures(record, name, DECODE, TOKENS_PER_S) for name in ("mixray-linked", "rival")
    )

    assert ratios(linked, rival) == [2.0]


def test_a_share_of_the_floor_does_not_move_with_the_machine() -> None:
    record = small_record()
    linked, floor = (
        figures(record, name, DECODE, TOKENS_PER_S) for name in ("mixray-linked", FLOOR)
    )

    assert Spread.of(ratios(linked, floor)) == Spread(0.5, 0.5, 0.5, 2)


def test_what_was_not_measured_has_no_figures() -> None:
    assert figures(small_record(), "rival", BURST, TOKENS_PER_S) == {}
    assert Spread.of([]) is None


def test_memory_is_the_most_of_all_rounds() -> None:
    assert memory_bytes(small_record(), "rival") == 2_500_000_000
    assert memory_bytes(small_record(), "mixray-http") is None
