"""Loads that change over time, as data; `shapes.py` gives them to Locust."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """`num_users` for `duration_s`, reached at `spawn_rate` users per second."""

    num_users: int
    spawn_rate: float
    duration_s: float


SHAPES: Mapping[str, tuple[Stage, ...]] = {
    # Where does throughput stop growing?
    "ramp": tuple(Stage(num_users, 8, 30) for num_users in (1, 2, 4, 8, 16, 32, 64)),
    # Does a burst leave anything behind? Compare the last stage with the first.
    "burst": (Stage(2, 2, 60), Stage(32, 32, 30), Stage(2, 32, 60)),
    # Do replicas go when the load has gone, and come back with it?
    "on_off": (Stage(8, 8, 60), Stage(1, 8, 120), Stage(8, 8, 60)),
    # Does the whole thing run? For trying things out, and for tests.
    "smoke": (Stage(1, 1, 1), Stage(2, 2, 1)),
}


def stage_at(stages: Sequence[Stage], run_time_s: float) -> Stage | None:
    """Find the stage that holds after `run_time_s`; None after the last."""
    for stage in stages:
        if run_time_s < stage.duration_s:
            return stage
        run_time_s -= stage.duration_s
    return None
