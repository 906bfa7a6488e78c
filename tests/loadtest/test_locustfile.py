"""Locust itself, headless, against a stub."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.loadtest.stub_server import MODEL, Script, chunk, serving

LOADTEST = Path(__file__).resolve().parents[2] / "loadtest"
ROWS = ("E2E", "TTFT", "ITL", "tokens/s")
RUN = ("--headless", "--users", "2", "--spawn-rate", "2", "--run-time", "1s")


def run_locust(
    url: str, folder: Path, *options: str, files: str = "locustfile.py"
) -> subprocess.CompletedProcess[str]:
    paths = ",".join(str(LOADTEST / name) for name in files.split(","))
    command = [sys.executable, "-m", "locust", "-f", paths, "--host", url, *options]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(path.read_text())}


def test_measurements_become_rows_and_a_record(tmp_path: Path) -> None:
    script = Script()
    files = ("--json-file", "rows", "--record", "record.json")
    options = ("--workload", "short", "--max-tokens", "5", "--note", "a stub")
    with serving(script) as url:
        run = run_locust(url, tmp_path, *RUN, *files, *options)

    assert run.returncode == 0, run.stderr
    rows = rows_of(tmp_path / "rows.json")
    record = json.loads((tmp_path / "record.json").read_text())
    numbers = record["numbers"]
    answered = numbers["answered_requests"]
    assert answered > 0
    assert {name: row["num_requests"] for name, row in rows.items()} == {
        "E2E": answered,
        "TTFT": answered,
        "ITL": 2 * answered,
        "tokens/s": answered,
    }
    assert rows["E2E"]["total_content_length"] == numbers["output_tokens"] == 3 * answered
    assert numbers["output_tokens_per_s"] > 0
    assert (record["workload"], record["note"], record["config"]["users"]) == ("short", "a stub", 2)
    assert f"| short | 2 | {answered} | 0 |" in run.stderr
    assert all(body["model"] == MODEL and body["max_tokens"] <= 5 for body in script.bodies)


def test_a_stream_without_done_counts_as_a_failure(tmp_path: Path) -> None:
    files = ("--json-file", "rows", "--record", "record.json")
    with serving(Script(events=(chunk("a", [7]),))) as url:
        run = run_locust(url, tmp_path, *RUN, *files)

    assert run.returncode == 1
    row = rows_of(tmp_path / "rows.json")["E2E"]
    numbers = json.loads((tmp_path / "record.json").read_text())["numbers"]
    assert row["num_requests"] == row["num_failures"] > 0
    assert numbers["answered_requests"] == 0
    assert numbers["failed_requests"] == {"BrokenOff": row["num_failures"]}


def test_rows_are_in_the_csv_file(tmp_path: Path) -> None:
    with serving(Script()) as url:
        run = run_locust(url, tmp_path, *RUN, "--run-time", "2s", "--csv", "run")

    assert run.returncode == 0, run.stderr
    with (tmp_path / "run_stats.csv").open() as file:
        names = {row["Name"] for row in csv.DictReader(file)}
    assert names == {*ROWS, "Aggregated"}


def test_a_shape_replaces_the_number_of_users_and_ends_the_run(tmp_path: Path) -> None:
    with serving(Script()) as url:
        options = ("--headless", "--shape", "smoke", "--record", "run.json")
        run = run_locust(url, tmp_path, *options, files="locustfile.py,shapes.py")

    assert run.returncode == 0, run.stderr
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"]["shape"] == "smoke"
    assert record["numbers"]["answered_requests"] > 0
