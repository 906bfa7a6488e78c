import pytest

from loadtest.bench.comparison import Spread
from loadtest.bench.table import number, page, spread
from tests.loadtest.bench.records import small_record

PAGE = page(small_record())


def row(title: str, section: str) -> list[str]:
    """The cells of a row of a section's table."""
    lines = PAGE.split(f"## {section}")[1].split("\n## ")[0].splitlines()
    [found] = [line for line in lines if line.startswith(f"| {title} |")]
    return [each.strip() for each in found.strip("|").split("|")][1:]


def test_figures_are_medians_with_the_spread_of_the_rounds() -> None:
    assert row("floor", "Figures")[0] == "1.50 (1.00..2.00)"
    assert row("mixray-linked", "Figures")[:2] == ["0.750 (0.500..1.00)", "6.00 (4.00..8.00)"]


def test_one_round_has_no_spread_and_what_failed_says_so() -> None:
    assert row("rival", "Figures") == ["0.250", "failed", "-", "-", "-", "2.50"]


def test_a_ratio_is_of_the_same_round() -> None:
    assert row("mixray-linked / rival", "mixray / rival")[0] == "2.00"


def test_http_is_compared_with_the_same_engine_without_it() -> None:
    assert row("mixray-http / mixray-linked", "HTTP / the same engine") == ["0.750"]


def test_shares_of_the_floor_do_not_move_with_the_machine() -> None:
    assert row("mixray-linked / floor", "Share of the floor")[0] == "0.500 (0.500..0.500)"


def test_the_page_says_how_everything_was_run_and_what_was_not() -> None:
    assert "- rival: `run {job}`; rival 1.0" in PAGE
    assert "- rival, decode-2: fastest was eager" in PAGE
    assert "- vllm: not measured, no --vllm-python" in PAGE
    assert "- round 2, rival: failed, ended with status 1 (burst-2)" in PAGE


def test_a_run_without_rivals_has_no_table_of_ratios() -> None:
    record = small_record()
    del record.setting.commands["rival"]

    assert "mixray / rival" not in page(record)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "0.123"), (1.2345, "1.23"), (12.345, "12.3"), (123.45, "123"), (1234.5, "1234")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_scale_changes_the_unit() -> None:
    assert spread(Spread(0.002, 0.001, 0.003, 2), 1e3) == "2.00 (1.00..3.00)"
