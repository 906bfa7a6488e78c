"""The load shape that `--shape` names. Give this file to Locust beside the users:

    locust -f loadtest/locustfile.py,loadtest/shapes.py --shape ramp --headless --host URL

It replaces `-u`, `-r` and `-t`. A file of its own, because Locust obeys any shape it can see.
"""

from locust import LoadTestShape, events
from locust.argument_parser import LocustArgumentParser

from loadtest.stages import SHAPES, stage_at


class StagedShape(LoadTestShape):
    """Goes through the stages and ends the run."""

    def tick(self) -> tuple[int, float] | None:
        """Called by Locust every second: how many users, and how fast to get there."""
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        assert options is not None
        run_time_s: float = self.get_run_time()  # type: ignore[no-untyped-call]
        stage = stage_at(SHAPES[options.shape], run_time_s)
        return None if stage is None else (stage.num_users, stage.spawn_rate)


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: LocustArgumentParser) -> None:
    """Called by Locust."""
    parser.add_argument("--shape", choices=tuple(SHAPES), default="ramp", help="load over time")
