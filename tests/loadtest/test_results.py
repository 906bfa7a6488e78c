from datetime import UTC, datetime

from loadtest.results import commit, hardware, result_stem, slug


def test_a_name_of_a_file_has_small_letters_digits_and_hyphens() -> None:
    assert slug("Intel(R) Xeon(R) @ 2.1GHz, 2 CPUs") == "intel-xeon-2-1ghz-2-cpus"


def test_a_result_is_named_by_what_where_when_and_of_which_commit() -> None:
    stem = result_stem("bench-mid", datetime(2026, 11, 24, tzinfo=UTC))

    assert stem == f"bench-mid_{slug(hardware())}_202611_{commit()}"
