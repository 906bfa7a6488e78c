from pathlib import Path

import pytest

from loadtest.bench.plot import draw_run
from tests.loadtest.bench.records import small_record

# Of the extra `bench`, which `make bench` installs and `make test` does not.
pytest.importorskip("matplotlib")


def test_a_run_is_drawn_whoever_failed_in_it(tmp_path: Path) -> None:
    path = tmp_path / "run.png"

    draw_run(small_record(), path)

    assert path.read_bytes().startswith(b"\x89PNG")
