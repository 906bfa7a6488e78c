"""Users that stream chat answers, one request after the other.

    locust -f loadtest/locustfile.py --headless -u 8 -r 4 -t 30s --host http://127.0.0.1:8000

Locust's table gets the rows E2E, TTFT, ITL (all in ms) and tokens/s (of one stream; not ms). A
request fails as a whole, in the row E2E. The end shows exact numbers and the throughput of all
streams together; `--record FILE` writes them as JSON. Requests that are under way when the time
is up count nowhere: give `--stop-timeout` to let them end.
"""

import itertools
import logging
import random
import time
from pathlib import Path
from typing import Any

from locust import User, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtest.results import COLUMNS, make_record
from loadtest.streaming_client import Measurement, StreamFailure, StreamingClient
from loadtest.tally import Tally
from loadtest.workloads import WORKLOADS

E2E, TTFT, ITL, TOKENS_PER_S = "E2E", "TTFT", "ITL", "tokens/s"
PAUSE_AFTER_FAILURE_S = 1.0

logger = logging.getLogger("locust.stats_logger")


class StreamingUser(User):
    """Asks, reads the answer to its end, asks again."""

    _numbers = itertools.count()

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        options = environment.parsed_options
        assert options is not None
        worker = getattr(environment.runner, "worker_index", 0)
        self._rng = random.Random(f"{options.seed} {worker} {next(self._numbers)}")
        self._workload = WORKLOADS[options.workload]
        self._max_tokens: int | None = options.max_tokens
        self._model: str = options.model
        self._client = StreamingClient(self.host or environment.host or "")
        self._pause_s = 0.0

    def wait_time(self) -> float:
        """Called by Locust: no time to think, but a server that refuses is not hammered."""
        return self._pause_s

    def on_stop(self) -> None:
        """Called by Locust."""
        self._client.close()

    @task
    def chat(self) -> None:
        """Send one request and report it to Locust."""
        body = self._workload.request(self._rng, self._max_tokens)
        started_s = time.perf_counter()
        try:
            self._model = self._model or self._client.first_model()
            measurement = self._client.chat({"model": self._model, **body})
        except StreamFailure as failure:
            self._pause_s = PAUSE_AFTER_FAILURE_S
            self._report(E2E, 1e3 * (time.perf_counter() - started_s), failure=failure)
        else:
            self._pause_s = 0.0
            self._report_measured(measurement)

    def _report_measured(self, measurement: Measurement) -> None:
        self._report(TTFT, 1e3 * measurement.ttft_s)
        for latency_s in measurement.itl_s:
            self._report(ITL, 1e3 * latency_s)
        if measurement.tokens_per_s is not None:
            self._report(TOKENS_PER_S, measurement.tokens_per_s)
        self._report(E2E, 1e3 * measurement.e2e_s, measurement=measurement)

    def _report(
        self,
        name: str,
        value: float,
        measurement: Measurement | None = None,
        failure: StreamFailure | None = None,
    ) -> None:
        self.environment.events.request.fire(
            request_type="stream",
            name=name,
            response_time=value,
            response_length=measurement.num_tokens if measurement else 0,
            exception=failure,
            context={"measurement": measurement},
        )


class Recorder:
    """Tallies what the users report; workers send their tallies to the master."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._tally = Tally()
        hooks = environment.events
        for hook, listener in (
            (hooks.request, self._request),
            (hooks.report_to_master, self._report_to_master),
            (hooks.worker_report, self._worker_report),
            (hooks.quit, self._quit),
        ):
            hook.add_listener(listener)  # type: ignore[no-untyped-call]

    def _request(
        self, name: str, exception: Exception | None, context: dict[str, Any], **_: Any
    ) -> None:
        measurement = context.get("measurement")
        if exception is not None:
            self._tally.failed(type(exception).__name__)
        elif measurement is not None:
            self._tally.answered(measurement, time.time())

    def _report_to_master(self, client_id: str, data: dict[str, Any]) -> None:
        data["tally"] = self._tally.to_data()
        self._tally = Tally()

    def _worker_report(self, client_id: str, data: dict[str, Any]) -> None:
        self._tally.add(data["tally"])

    def _quit(self, exit_code: int) -> None:
        options = self._environment.parsed_options
        if options is None or isinstance(self._environment.runner, WorkerRunner):
            return
        config = {
            "users": options.num_users,
            "seed": options.seed,
            "max_tokens": options.max_tokens,
            "run_time_s": options.run_time,
            "host": self._environment.host,
            "shape": getattr(options, "shape", None),
        }
        record = make_record(options.workload, config, options.note, self._tally.numbers())
        logger.info("\n".join(("", *COLUMNS, record.to_markdown(), "")))
        if options.record is not None:
            options.record.write_text(record.to_json())


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: LocustArgumentParser) -> None:
    """Called by Locust."""
    parser.add_argument(
        "--workload", choices=tuple(WORKLOADS), default="chat", help="lengths of requests"
    )
    parser.add_argument("--model", default="", help="default: the first that the server lists")
    parser.add_argument("--max-tokens", type=int, help="cut longer answers")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts and lengths")
    parser.add_argument("--record", type=Path, help="write exact numbers to this JSON file")
    parser.add_argument("--note", default="", help="kept in the record: what serves, and how")


@events.init.add_listener  # type: ignore[untyped-decorator]
def record(environment: Environment, **_: Any) -> None:
    """Called by Locust in every process, before the first user."""
    Recorder(environment)
