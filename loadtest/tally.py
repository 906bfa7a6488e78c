"""What all requests of one run measured, kept exactly: Locust's own rows are rounded to 1 ms.

Knows neither HTTP nor Locust. A tally travels between processes as plain data.
"""

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from loadtest.streaming_client import Measurement

SERIES = ("ttft_s", "itl_s", "e2e_s", "stream_tokens_per_s")
QUANTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}


class Tally:
    """Mutable state: every measured value, counts, and when the first and last request ended."""

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()
        self.num_requests = 0
        self.num_tokens = 0
        self._values = {name: array("d") for name in SERIES}
        self._began_s = math.inf
        self._ended_s = -math.inf

    def answered(self, measurement: Measurement, ended_s: float) -> None:
        """Count an answered request that ended at `ended_s` by the wall clock."""
        self.num_requests += 1
        self.num_tokens += measurement.num_tokens
        self._values["ttft_s"].append(measurement.ttft_s)
        self._values["itl_s"].extend(measurement.itl_s)
        self._values["e2e_s"].append(measurement.e2e_s)
        if measurement.tokens_per_s is not None:
            self._values["stream_tokens_per_s"].append(measurement.tokens_per_s)
        self._span(ended_s - measurement.e2e_s, ended_s)

    def failed(self, kind: str) -> None:
        """Count a request that was not answered in full; its tokens count nowhere."""
        self.failures[kind] += 1

    def to_data(self) -> dict[str, Any]:
        """Give everything as plain data."""
        return {
            "failures": dict(self.failures),
            "num_requests": self.num_requests,
            "num_tokens": self.num_tokens,
            "values": {name: values.tobytes() for name, values in self._values.items()},
            "span": (self._began_s, self._ended_s),
        }

    def add(self, data: Mapping[str, Any]) -> None:
        """Add another tally's `to_data`."""
        self.failures.update(data["failures"])
        self.num_requests += data["num_requests"]
        self.num_tokens += data["num_tokens"]
        for name, values in data["values"].items():
            self._values[name].frombytes(values)
        self._span(*data["span"])

    def numbers(self) -> dict[str, Any]:
        """Sum up; units are in the names. Throughput counts answered requests only."""
        duration_s = max(self._ended_s - self._began_s, 0.0)
        return {
            "answered_requests": self.num_requests,
            "failed_requests": dict(self.failures),
            "duration_s": duration_s,
            "output_tokens": self.num_tokens,
            "output_tokens_per_s": self.num_tokens / duration_s if duration_s else 0.0,
            "requests_per_s": self.num_requests / duration_s if duration_s else 0.0,
            **{name: _distribution(values) for name, values in self._values.items()},
        }

    def _span(self, began_s: float, ended_s: float) -> None:
        self._began_s = min(self._began_s, began_s)
        self._ended_s = max(self._ended_s, ended_s)


def _distribution(values: Sequence[float]) -> dict[str, float]:
    """Mean, quantiles and maximum; empty for no values."""
    if not values:
        return {}
    ordered = sorted(values)
    return {
        "mean": math.fsum(ordered) / len(ordered),
        **{name: _quantile(ordered, share) for name, share in QUANTILES.items()},
        "max": ordered[-1],
    }


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]
