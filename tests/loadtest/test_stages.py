"""Load over time."""

from loadtest.stages import Stage, stage_at

STAGES = (Stage(1, 1, 10), Stage(8, 4, 5))


def test_stages_follow_one_another_and_then_the_run_ends() -> None:
    seen = [stage_at(STAGES, run_time_s) for run_time_s in (0.0, 9.9, 10.0, 14.9, 15.0)]

    assert seen == [STAGES[0], STAGES[0], STAGES[1], STAGES[1], None]
