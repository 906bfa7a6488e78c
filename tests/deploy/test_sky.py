"""deploy/sky/mixray.yaml: SkyPilot reads it, and its script makes a cluster of two machines."""

import re
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.checkpoints import write_serving_checkpoint
from tests.deploy.rig.machines import ROOT, Machines, machines, needs_machines, wait_until

FILE = ROOT / "deploy" / "sky" / "mixray.yaml"
SKYPILOT = "skypilot==0.14.1"
INSTALL_TIMEOUT_S = 600
READ = "import sys, sky; print(sky.Task.from_yaml(sys.argv[1]))"
ADDRESSES = ("10.77.0.11", "10.77.0.12")
MODEL_DIR = "/var/tmp"


@pytest.fixture(scope="module")
def sky_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with SkyPilot, whose dependencies are its own: never in mixray's environment."""
    folder = tmp_path_factory.mktemp("sky")
    venv.create(folder, with_pip=True)
    command = [folder / "bin" / "pip", "install", "--quiet", SKYPILOT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    if done.returncode != 0:
        pytest.skip(f"{SKYPILOT} cannot be installed: {done.stderr[-300:]}")
    return folder / "bin" / "python"


def read_with_skypilot(python: Path, content: dict[str, Any], folder: Path) -> str:
    """Load a task file; what SkyPilot prints."""
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(content))
    # The secret has no default, so it must come with the command.
    content["secrets"] = {"RAY_AUTH_TOKEN": "t"}
    path.write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [python, "-c", READ, path],
        cwd=ROOT,
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin", "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout + done.stderr
