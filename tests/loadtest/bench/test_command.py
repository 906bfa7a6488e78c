from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.app import ENVIRONMENT
from loadtest.bench.__main__ import SPIN_COUNT, app, shown_command


def test_folders_of_this_machine_are_not_part_of_the_command_shown() -> None:
    arguments = ["--model", "mid", "--folder", "/a", "--vllm-python=/b/python", "--rounds", "5"]

    assert shown_command(arguments) == "python -m loadtest.bench --model mid --rounds 5"


def test_mixray_runs_in_the_environment_that_serve_gives_its_actors() -> None:
    assert ENVIRONMENT == {"GOMP_SPINCOUNT": SPIN_COUNT}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--model", "large"], "got large, want one of tiny, mid, real2"),
        (["--model", "tiny", "--cells", "decode,encode"], "got encode, want some of decode"),
    ],
)
def test_a_value_that_means_nothing_is_refused_before_anything_is_written(
    arguments: list[str], problem: str, tmp_path: Path
) -> None:
    places = ["--folder", str(tmp_path / "models"), "--results", str(tmp_path / "results")]

    done = CliRunner().invoke(app, [*arguments, *places], env={"COLUMNS": "200"})

    assert done.exit_code == 2
    assert problem in done.output
    assert list(tmp_path.iterdir()) == []
