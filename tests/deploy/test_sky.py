"""deploy/sky/mixray.yaml: SkyPilot understands it, and its script makes a cluster of two nodes."""

import copy
import os
import subprocess
import venv
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from tests.checkpoints import write_serving_checkpoint
from tests.deploy.rig.machines import ROOT, Machines, machines, needs_machines, wait_until

TASK: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "sky" / "mixray.yaml").read_text())
SKYPILOT = "skypilot==0.14.1"
INSTALL_TIMEOUT_S = 600
READ_TASK = "import sys, sky; print(sky.Task.from_yaml(sys.argv[1]).service)"
ADDRESSES = ("10.77.0.11", "10.77.0.12")
URL = f"http://{ADDRESSES[0]}:8000"
READY_TIMEOUT_S = 180
TOKEN = "0123456789abcdef" * 4

pytestmark = pytest.mark.slow

Read = Callable[[dict[str, Any]], str]


@pytest.fixture(scope="module")
def read_with_skypilot(tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Give what SkyPilot says about a task. It has an environment and a home of its own."""
    folder = tmp_path_factory.mktemp("sky")
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "pip", "install", "--quiet", SKYPILOT]
    done = subprocess.run(
        pip, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"{SKYPILOT} cannot be installed: {done.stderr[-300:]}")

    def read(task: dict[str, Any]) -> str:
        path = folder / "task.yaml"
        path.write_text(yaml.safe_dump(task))
        done = subprocess.run(
            [folder / "bin" / "python", "-c", READ_TASK, path],
            cwd=ROOT,
            env={**os.environ, "HOME": str(folder), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout + done.stderr

    return read


@pytest.fixture(scope="module")
def rig() -> Iterator[Machines]:
    """Two nodes that run the file's script, as SkyPilot would start it, but on CPUs."""
    with machines(len(ADDRESSES)) as rig:
        write_serving_checkpoint(rig.home() / "model")
        variables = {
            "MODEL_NAME": TASK["envs"]["MODEL_NAME"],
            "MODEL_DIR": str(rig.home() / "model"),
            "RAY_AUTH_TOKEN": TOKEN,
            "SKYPILOT_NODE_IPS": "\n".join(ADDRESSES),
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NUM_GPUS_PER_NODE": "2",
        }
        script = TASK["run"].replace("--device cuda", "--device cpu")
        for rank in range(len(ADDRESSES)):
            values = [f"{name}={value}" for name, value in variables.items()]
            command = ("env", *values, f"SKYPILOT_NODE_RANK={rank}", "bash", "-c", script)
            rig.start(*command, machine=1 + rank)
        try:
            wait_until(lambda: rig.can_ask(f"{URL}/ready"), READY_TIMEOUT_S)
        except AssertionError as error:
            raise AssertionError(f"{rig.log(1)}\n{rig.log(2)}") from error
        yield rig


def changed(*path: str, value: object) -> dict[str, Any]:
    """The task with one more entry, or with another value."""
    task = copy.deepcopy(TASK)
    inner = task
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return task


def test_skypilot_reads_a_service_that_is_probed_with_a_chat(read_with_skypilot: Read) -> None:
    answer = read_with_skypilot(TASK)

    assert "POST /v1/chat/completions" in answer
    assert "from 1 to 4 replicas" in answer
    assert "Error" not in answer


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        (changed("num_nodez", value=2), "did you mean 'num_nodes'"),
        (changed("service", "readiness_probe", "paht", value="/"), "paht"),
        (changed("service", "replica_policy", "max_replicas", value=0), "max_replicas"),
        (changed("resources", "any_of", value=[{"infra": "asw"}]), "asw"),
    ],
)
def test_skypilot_would_refuse_a_mistake(
    read_with_skypilot: Read, task: dict[str, Any], complaint: str
) -> None:
    answer = read_with_skypilot(task)

    assert "Error" in answer
    assert complaint in answer


class TestScript:
    pytestmark = needs_machines

    def test_the_readiness_probe_is_answered(self, rig: Machines) -> None:
        probe = TASK["service"]["readiness_probe"]

        answer = rig.ask(URL + probe["path"], probe["post_data"])

        assert answer["usage"]["completion_tokens"] == 1

    def test_both_nodes_are_in_the_cluster(self, rig: Machines) -> None:
        address = f"{ADDRESSES[0]}:6379"
        command = ("env", f"RAY_AUTH_TOKEN={TOKEN}", "mixray", "status", "--address", address)

        output = rig.run(*command, machine=1)

        assert all(f" {node} " in output for node in ADDRESSES), output
