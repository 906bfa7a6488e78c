"""`ray up deploy/ray/local.yaml` for real, on three hosts with sshd in network namespaces.

The file is the shipped one but for addresses, login and checkpoint.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.checkpoint.load import open_checkpoint
from model.checkpoint.names import expected_shapes
from tests.checkpoints import write_serving_checkpoint
from tests.deploy.rig.machines import (
    ROOT,
    CommandFailed,
    Machines,
    machines,
    needs_machines,
    wait_until,
)
from tests.running import build, generate

ADDRESSES = {
    "192.168.1.10": "10.77.0.11",
    "192.168.1.11": "10.77.0.12",
    "192.168.1.12": "10.77.0.13",
}
URL = "http://10.77.0.11:8000"
# At the same path on every host, and not on the disk that they share.
MODEL_DIR = "/tmp/model"
PROMPTS = [[1, 40, 7, 300, 12], [1, *range(20, 60)]]
NUM_TOKENS = 48
GREEDY = {"model": "tiny", "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
READY_TIMEOUT_S = 150

pytestmark = needs_machines


def write_files(home: Path) -> None:
    """Write what lies in the checkout of whoever runs `ray up`, edited as its header says."""
    text = (ROOT / "deploy" / "ray" / "local.yaml").read_text()
    for theirs, ours in ADDRESSES.items():
        text = text.replace(theirs, ours)
    cluster = yaml.safe_load(text)
    cluster["auth"]["ssh_user"] = "root"
    cluster["file_mounts"][MODEL_DIR] = "model"
    serve = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text())
    serve["applications"][0]["args"] = {
        "model": MODEL_DIR,
        "model_name": "tiny",
        "expert_hosts": len(ADDRESSES),
        "hosts_per_node": 1,
    }
    (home / "deploy").mkdir()
    (home / "dist").mkdir()
    [wheel] = (path for path in cluster["file_mounts"].values() if path.startswith("dist/"))
    (home / wheel).touch()  # mixray is installed on the hosts already, so nobody looks inside
    shutil.copy(ROOT / "constraints.txt", home)
    (home / "deploy" / "serve.yaml").write_text(yaml.safe_dump(serve))
    (home / "local.yaml").write_text(yaml.safe_dump(cluster))
    write_serving_checkpoint(home / "model")


def ray(rig: Machines, verb: str, *options: str) -> str:
    """Run `ray VERB` with the cluster's file, as its header says."""
    return rig.run("env", "RAY_UP_enable_autoscaler_v2=0", "ray", verb, "local.yaml", *options)


def status_of(rig: Machines) -> dict[str, Any]:
    """`mixray status --json` on the head."""
    output = ray(rig, "exec", "mixray status --json")
    found = re.search(r"^\{.*^\}", output, re.DOTALL | re.MULTILINE)
    assert found is not None, output
    content = json.loads(found.group())
    assert isinstance(content, dict)
    return content


@pytest.fixture(scope="module")
def rig() -> Iterator[Machines]:
    """Machines on which the cluster is up and serves."""
    with machines(len(ADDRESSES)) as rig:
        write_files(rig.home())
        rig.run("ray", "get-auth-token", "--generate")
        ray(rig, "up", "--yes", "--no-config-cache")
        wait_until(lambda: rig.can_ask(f"{URL}/ready"), READY_TIMEOUT_S)
        yield rig


@pytest.fixture(scope="module")
def status(rig: Machines) -> dict[str, Any]:
    """Status once every host has its share of the experts: workers join after the head."""
    answers = []

    def have_settled() -> bool:
        answers.append(status_of(rig))
        hosts = answers[-1]["expert_hosts"]
        return len(hosts) == len(ADDRESSES) and all(host["experts"] for host in hosts)

    wait_until(have_settled, READY_TIMEOUT_S)
    return answers[-1]


def test_experts_live_on_all_three_hosts(status: dict[str, Any]) -> None:
    hosts = status["expert_hosts"]

    assert sorted(host["node"] for host in hosts) == sorted(ADDRESSES.values())
    assert sorted(expert for host in hosts for expert in host["experts"]) == list(range(8))
    assert all(host["address"].startswith(f"tcp:{host['node']}:") for host in hosts)


def test_tokens_are_those_of_one_process(rig: Machines, status: dict[str, Any]) -> None:
    checkpoint = open_checkpoint(rig.home() / "model")
    tensors = checkpoint.tensors(expected_shapes(checkpoint.config), "float32")
    transformer, experts = build(checkpoint.config, tensors)
    golden = [generate(transformer, experts, prompt, NUM_TOKENS) for prompt in PROMPTS]
    bodies = [{**GREEDY, "prompt": prompt, "return_token_ids": True} for prompt in PROMPTS]

    answers = [rig.ask(f"{URL}/v1/completions", body) for body in bodies]

    assert [answer["choices"][0]["token_ids"] for answer in answers] == golden


def test_hidden_states_go_over_tcp_to_the_other_hosts(
    rig: Machines, status: dict[str, Any]
) -> None:
    [router] = status["routers"]
    far = [host for host in status["expert_hosts"] if host["node"] != router["node"]]
    machine = 1 + list(ADDRESSES.values()).index(router["node"])

    rig.ask(f"{URL}/v1/completions", {**GREEDY, "prompt": PROMPTS[1]})

    peers = rig.run("ss", "-Htn", "state", "established", machine=machine)
    rows = [host["rows_by_expert"] for host in status_of(rig)["expert_hosts"]]
    assert len(far) == 2
    assert all(host["address"].removeprefix("tcp:") in peers for host in far)
    assert all(sum(rows_by_expert.values()) > 0 for rows_by_expert in rows)


def test_a_wrong_token_opens_nothing(rig: Machines) -> None:
    wrong = ("env", "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN=wrong", "timeout", "60")

    with pytest.raises(CommandFailed, match="AuthenticationError"):
        rig.run(*wrong, "ray", "status", "--address", "10.77.0.11:6379")


def test_ray_down_ends_the_head_and_its_server(rig: Machines) -> None:
    """The last test: it takes the cluster away."""
    ray(rig, "down", "--yes")

    programs = rig.run("ps", "-eo", "comm=", machine=1).split()
    assert not [name for name in programs if name.startswith(("ray", "gcs_server", "python"))]
    assert not rig.can_ask(f"{URL}/ready")
