from dataclasses import replace

from loadtest.bench.record import BenchRecord
from tests.loadtest.bench.records import DECODE, sample, small_record


def test_a_record_survives_being_written() -> None:
    record = small_record()

    assert BenchRecord.from_json(record.to_json()) == record


def test_an_empty_record_survives_being_written() -> None:
    record = BenchRecord(setting=small_record().setting)

    assert BenchRecord.from_json(record.to_json()) == record


def test_digits_that_mean_nothing_are_cut() -> None:
    record = BenchRecord(setting=small_record().setting)
    record.samples.append(sample(1, "rival", DECODE, 123.456789))

    [found] = BenchRecord.from_json(record.to_json()).samples

    assert found == replace(record.samples[0], values={"tokens_per_s": [123.46]})


def test_rounds_are_those_in_which_anything_happened() -> None:
    assert small_record().rounds == [1, 2]
