"""The files for `serve deploy`, `ray up`, SkyPilot, KubeRay and Docker: accepted by the schemas
that can be had offline, and in agreement with each other and with the code."""

import inspect
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from cluster.handle import APP_NAME
from deploy.api.schemas import ChatRequest
from deploy.app import build
from deploy.cli import app
from deploy.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
PORT = 8000
RAY_CLUSTERS = ("ray/local.yaml", "ray/aws.yaml")
SERVE_CONFIGS = ("serve.yaml", "ray/aws-serve.yaml", "kuberay/rayservice.yaml")
# CPU machines for the head, and the families with NVIDIA GPUs.
INSTANCE_FAMILIES = {"m5", "m6i", "m7i", "g5", "g6", "g6e", "p4d", "p4de", "p5", "p5e", "p5en"}


def load(name: str) -> dict[str, Any]:
    content = yaml.safe_load((DEPLOY / name).read_text())
    assert isinstance(content, dict)
    return content


def serve_config(name: str) -> dict[str, Any]:
    if name != "kuberay/rayservice.yaml":
        return load(name)
    config = yaml.safe_load(load(name)["spec"]["serveConfigV2"])
    assert isinstance(config, dict)
    return config


def node_types(config: dict[str, Any]) -> list[dict[str, Any]]:
    return list(config["available_node_types"].values())


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("name", SERVE_CONFIGS)
def test_ray_serve_accepts_it(name: str) -> None:
    config = serve_config(name)

    ServeDeploySchema.model_validate(config)

    # The schema itself lets any other key pass.
    assert set(config) <= set(ServeDeploySchema.model_fields)


@pytest.mark.parametrize("name", SERVE_CONFIGS)
def test_it_serves_the_one_application_with_known_settings(name: str) -> None:
    config = serve_config(name)

    [application] = config["applications"]

    assert application["name"] == APP_NAME
    assert application["import_path"] == f"{build.__module__}:{build.__name__}"
    assert [p.annotation for p in inspect.signature(build).parameters.values()] == [Settings]
    Settings.model_validate(application["args"])
    assert config["http_options"]["port"] == PORT


def test_a_mistyped_setting_would_be_noticed() -> None:
    with pytest.raises(ValidationError, match="expert_host"):
        Settings.model_validate({"expert_host": 2})


@pytest.mark.parametrize("name", RAY_CLUSTERS)
def test_ray_up_accepts_it(name: str) -> None:
    validate_config(prepare_config(load(name)))


@pytest.mark.parametrize("name", RAY_CLUSTERS)
def test_a_mistyped_key_would_be_noticed(name: str) -> None:
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config({**load(name), "max_worker": 1}))


@pytest.mark.parametrize("name", RAY_CLUSTERS)
def test_what_is_mounted_is_there_or_made_by_the_commands_on_top(name: str) -> None:
    wheel = f"mixray-{pyproject()['project']['version']}-py3-none-any.whl"
    config = load(name)

    mounts = config["file_mounts"]

    assert mounts[f"~/{wheel}"] == f"dist/{wheel}"
    assert f"pip install -c ~/constraints.txt ~/{wheel}" in config["setup_commands"][0]
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert mounts["~/serve.yaml"].startswith("deploy/")
    assert (ROOT / mounts["~/serve.yaml"]).is_file()
    assert (ROOT / mounts["~/constraints.txt"]).is_file()


@pytest.mark.parametrize("name", RAY_CLUSTERS)
def test_only_a_token_opens_ray_and_the_dashboard_stays_on_loopback(name: str) -> None:
    config = load(name)

    head, worker = config["head_start_ray_commands"], config["worker_start_ray_commands"]

    assert any("RAY_AUTH_MODE=token" in command for command in config["setup_commands"])
    assert "--dashboard-host=127.0.0.1" in head[1]
    assert head[0] == worker[0] == "ray stop"
    assert head[2] == "serve deploy ~/serve.yaml"


def test_the_local_heads_address_is_the_same_everywhere() -> None:
    config = load("ray/local.yaml")
    text = (DEPLOY / "ray" / "local.yaml").read_text()

    head_ip, worker_ips = config["provider"]["head_ip"], config["provider"]["worker_ips"]

    assert f"--node-ip-address={head_ip} " in config["head_start_ray_commands"][1]
    assert f"http://{head_ip}:{PORT}/" in text
    assert text.count(head_ip) == 3
    assert config["min_workers"] == config["max_workers"] == len(worker_ips)


def test_aws_names_a_region_and_instances_that_exist() -> None:
    config = load("ray/aws.yaml")

    types = [node["node_config"]["InstanceType"] for node in node_types(config)]

    assert re.fullmatch(r"[a-z]{2}-[a-z]+-\d", config["provider"]["region"])
    assert {name.partition(".")[0] for name in types} <= INSTANCE_FAMILIES
    assert all(re.fullmatch(r"\d*x?large|metal", name.partition(".")[2]) for name in types)


def test_aws_opens_ssh_and_the_api_to_the_operator_alone() -> None:
    config = load("ray/aws.yaml")
    text = (DEPLOY / "ray" / "aws.yaml").read_text().replace("\\\n#", "")

    openings = re.findall(r"authorize-security-group-ingress (.*)", text)

    assert sorted(re.findall(r"--port (\d+) --cidr (\S+)", " ".join(openings))) == [
        ("22", "$MY_CIDR"),
        (str(PORT), "$MY_CIDR"),
    ]
    assert [o for o in openings if "--port" not in o] == [o for o in openings if "=-1" in o]
    assert all("--source-group $GROUP" in o for o in openings if "=-1" in o)
    assert "0.0.0.0/0" not in text
    # Ray's own group would open port 22 to the world.
    assert "security_group" not in config["provider"]
    assert all(node["node_config"]["SecurityGroupIds"] for node in node_types(config))


def test_aws_has_a_gpu_for_every_router_and_host() -> None:
    config = load("ray/aws.yaml")
    [application] = load("ray/aws-serve.yaml")["applications"]

    num_gpus = sum(
        node.get("min_workers", 0) * node["resources"].get("GPU", 0) for node in node_types(config)
    )

    assert num_gpus >= application["args"]["routers"] + application["args"]["expert_hosts"]
    assert config["max_workers"] >= sum(node.get("max_workers", 0) for node in node_types(config))
    assert application["args"]["model"] in " ".join(config["setup_commands"])


def test_the_readiness_probe_is_a_chat_request_to_the_served_model() -> None:
    config = load("sky/mixray.yaml")

    probe = config["service"]["readiness_probe"]

    request = ChatRequest.model_validate(probe["post_data"])
    assert probe["path"] == "/v1/chat/completions"
    assert request.model == config["envs"]["MODEL_NAME"]
    assert config["resources"]["ports"] == [PORT]


def test_the_commands_are_shell_and_know_our_options() -> None:
    config = load("sky/mixray.yaml")
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    known = {option for parameter in serve.params for option in parameter.opts}

    for script in (config["setup"], config["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    command = config["run"].partition("mixray serve")[2]

    assert set(re.findall(r"(--[a-z-]+)", command)) <= known
    assert set(re.findall(r"--set (\w+)=", command)) <= set(Settings.model_fields)
    assert "ray stop" not in config["run"]


def test_the_token_is_a_secret_without_a_default() -> None:
    config = load("sky/mixray.yaml")

    assert config["secrets"] == {"RAY_AUTH_TOKEN": None}
    assert "RAY_AUTH_MODE=token" in config["run"]


def test_the_image_holds_every_package() -> None:
    text = (DEPLOY / "Dockerfile").read_text()

    copied = set(re.findall(r"^COPY \S+ (\w+) \./\1$", text, re.MULTILINE))

    packages = pyproject()["tool"]["setuptools"]["packages"]
    assert copied == {package.partition(".")[0] for package in packages}


def test_all_pods_run_the_image_and_its_ray() -> None:
    cluster = load("kuberay/rayservice.yaml")["spec"]["rayClusterConfig"]
    dockerfile = (DEPLOY / "Dockerfile").read_text()

    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {c["image"] for g in groups for c in g["template"]["spec"]["containers"]}

    assert images == {f"mixray:{pyproject()['project']['version']}"}
    assert f"-t {images.pop()} ." in dockerfile
    assert f"ARG RAY_IMAGE=rayproject/ray:{cluster['rayVersion']}-py" in dockerfile
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().split()


def test_the_pods_are_guarded_by_a_token_and_open_the_port_that_is_served() -> None:
    cluster = load("kuberay/rayservice.yaml")["spec"]["rayClusterConfig"]

    [head] = cluster["headGroupSpec"]["template"]["spec"]["containers"]

    assert cluster["authOptions"] == {"mode": "token"}
    assert {"containerPort": PORT, "name": "serve"} in head["ports"]


def test_the_workers_have_the_cpus_that_are_asked_for() -> None:
    spec = load("kuberay/rayservice.yaml")["spec"]
    [application] = serve_config("kuberay/rayservice.yaml")["applications"]
    args = application["args"]

    [group] = spec["rayClusterConfig"]["workerGroupSpecs"]
    [worker] = group["template"]["spec"]["containers"]

    num_cpus = group["minReplicas"] * int(worker["resources"]["limits"]["cpu"])
    wanted = args["expert_hosts"] * args["cpus_per_host"] + args["cpus_per_router"]
    assert num_cpus >= wanted
    assert group["minReplicas"] >= args["expert_hosts"] / args["hosts_per_node"]
