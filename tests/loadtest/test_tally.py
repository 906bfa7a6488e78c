"""Sums and quantiles, by hand."""

import json

from loadtest.results import COLUMNS, make_record
from loadtest.streaming_client import Measurement
from loadtest.tally import Tally


def measured(ttft_s: float, itl_s: tuple[float, ...], e2e_s: float) -> Measurement:
    return Measurement(ttft_s=ttft_s, itl_s=itl_s, e2e_s=e2e_s, num_tokens=1 + len(itl_s))


def filled() -> Tally:
    """Two requests, from 100 s to 102 s and from 101 s to 104 s, and two failures."""
    tally = Tally()
    tally.answered(measured(0.5, (0.25, 0.75), 2.0), ended_s=102.0)
    tally.answered(measured(1.5, (0.5,), 3.0), ended_s=104.0)
    tally.failed("Refused")
    tally.failed("Refused")
    return tally


def test_throughput_is_all_tokens_over_the_time_from_the_first_start_to_the_last_end() -> None:
    numbers = filled().numbers()

    assert numbers["duration_s"] == 4.0
    assert numbers["output_tokens"] == 5
    assert numbers["output_tokens_per_s"] == 1.25
    assert numbers["requests_per_s"] == 0.5
    assert numbers["failed_requests"] == {"Refused": 2}


def test_quantiles_are_measured_values() -> None:
    numbers = filled().numbers()

    assert numbers["ttft_s"] == {"mean": 1.0, "p50": 0.5, "p90": 1.5, "p99": 1.5, "max": 1.5}
    assert numbers["itl_s"] == {"mean": 0.5, "p50": 0.5, "p90": 0.75, "p99": 0.75, "max": 0.75}
    assert numbers["stream_tokens_per_s"]["max"] == 2.0


def test_tallies_of_several_processes_add_up() -> None:
    whole, first, second = filled(), Tally(), Tally()
    first.answered(measured(0.5, (0.25, 0.75), 2.0), ended_s=102.0)
    first.failed("Refused")
    second.answered(measured(1.5, (0.5,), 3.0), ended_s=104.0)
    second.failed("Refused")

    master = Tally()
    master.add(second.to_data())
    master.add(first.to_data())
    master.add(Tally().to_data())

    assert master.numbers() == whole.numbers()


def test_an_empty_tally_has_numbers_too() -> None:
    numbers = Tally().numbers()

    assert numbers["output_tokens_per_s"] == 0.0
    assert numbers["duration_s"] == 0.0
    assert numbers["ttft_s"] == {}


def test_a_record_is_json_and_a_row_as_wide_as_its_header() -> None:
    record = make_record("chat", {"users": 2, "seed": 0}, "a note", filled().numbers())

    row = record.to_markdown()

    assert row == "| chat | 2 | 2 | 2 | 1.2 | 500.0 / 1500.0 | 500.0 / 750.0 |"
    assert {line.count("|") for line in (row, *COLUMNS)} == {8}
    assert json.loads(record.to_json())["numbers"]["output_tokens"] == 5


def test_a_record_of_a_run_without_answers_has_a_row() -> None:
    record = make_record("chat", {"users": 2}, "", Tally().numbers())

    assert record.to_markdown() == "| chat | 2 | 0 | 0 | 0.0 | - | - |"
