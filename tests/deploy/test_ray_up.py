"""`ray up deploy/ray/local.yaml` for real: three hosts with sshd, in network namespaces.

The file is the shipped one but for addresses, login and checkpoint. Everything, the launching
machine included, lies in pid namespaces of its own: `ray stop` ends every Ray process that it sees.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.checkpoint.load import open_checkpoint
from model.checkpoint.names import expected_shapes
from tests.checkpoints import write_serving_checkpoint
from tests.running import build, generate

ROOT = Path(__file__).resolve().parents[2]
NETHOSTS = ROOT / "tests" / "deploy" / "rig" / "nethosts.sh"
PROGRAMS = ("ip", "unshare", "nsenter", "/usr/sbin/sshd", "ssh", "ssh-keygen", "rsync", "curl", "ss")
HEAD, *WORKERS = ADDRESSES = ("10.77.0.11", "10.77.0.12", "10.77.0.13")
URL = f"http://{HEAD}:8000"
MODEL_DIR = "/tmp/model"
PROMPT = [1, 40, 7, 300, 12]
NUM_TOKENS = 32
UP_TIMEOUT_S = 300

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    *(
        pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")
        for program in PROGRAMS
    ),
]


class Rig:
    """A launching machine, number 0, and hosts 1 to 3."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "0" / "home"

    def run(self, *command: str, machine: int = 0, timeout_s: float = 120) -> str:
        """Run a command on a machine; its standard output."""
        done = subprocess.run(
            [NETHOSTS, "exec", self.folder, str(machine), *command],
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout

    def ray(self, verb: str, *options: str) -> str:
        """`ray VERB local.yaml` on the launching machine."""
        environment = ("env", "RAY_UP_enable_autoscaler_v2=0", "RAY_USAGE_STATS_ENABLED=0")
        command = ("ray", verb, "local.yaml", *options)
        return self.run(*environment, *command, timeout_s=UP_TIMEOUT_S)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask the served API from the launching machine."""
        options = ("-sS", "--max-time", "60", "-H", "content-type: application/json")
        answer = self.run("curl", *options, "-d", json.dumps(body), URL + path)
        content = json.loads(answer)
        assert isinstance(content, dict)
        return content

    def status(self) -> dict[str, Any]:
        """`mixray status --json` on the head."""
        output = self.ray("exec", "mixray status --json")
        content = json.loads(output[output.index("{") : output.rindex("}") + 1])
        assert isinstance(content, dict)
        return content


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    # Not under /tmp: every machine has another one.
    folder = Path(tempfile.mkdtemp(prefix="mixray-rig-", dir="/var/tmp"))
    venv = Path(os.environ.get("VIRTUAL_ENV", "")) if os.environ.get("VIRTUAL_ENV") else None
    try:
        subprocess.run([NETHOSTS, "up", folder, venv or ROOT / ".venv", "3"], cwd=ROOT, check=True)
        yield Rig(folder)
    finally:
        subprocess.run([NETHOSTS, "down", folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)
