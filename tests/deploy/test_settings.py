"""Settings: what is refused, what is derived, what the actors get."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.config import EngineConfig
from deploy.settings import DEMO_CHECKPOINT, Settings, SettingsError
from tests.checkpoints import TINY_DENSE, TINY_MOE


def settings(**values: Any) -> Settings:
    return Settings.model_validate(values)


def test_defaults_serve_the_demo_model_with_two_hosts() -> None:
    default = settings()

    assert (default.model, default.served_name) == (DEMO_CHECKPOINT, "mixray-demo")
    assert (default.routers, default.expert_hosts, default.device) == (1, 2, "cpu")


def test_values_of_a_command_line_are_read_as_what_they_mean() -> None:
    read = settings(expert_hosts="4", reply_timeout_s="2.5", model="some/folder", link="tcp")

    assert (read.expert_hosts, read.reply_timeout_s, read.link) == (4, 2.5, "tcp")
    assert read.model == Path("some/folder")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("expert_host", 2),
        ("routers", 0),
        ("expert_hosts", -1),
        ("expert_hosts", "two"),
        ("slots_per_host", 0),
        ("dtype", "int8"),
        ("device", "tpu"),
        ("link", "pigeon"),
        ("kv_tokens", 0),
        ("step_tokens", 0),
        ("max_running", 0),
        ("reply_timeout_s", 0),
        ("reply_timeout_s", "nan"),
        ("gpus_per_host", 0),
        ("threads", 0),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(ValidationError) as refusal:
        settings(**{name: value})

    assert [error["loc"] for error in refusal.value.errors()] == [(name,)]


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        settings().routers = 2


def test_the_served_name_is_the_folder_s_unless_it_is_given(tmp_path: Path) -> None:
    folder = tmp_path / "Mixtral-8x7B"
    folder.mkdir()

    assert settings(model=folder / ".").served_name == "Mixtral-8x7B"
    assert settings(model=folder, model_name="mine").served_name == "mine"


@pytest.mark.parametrize(("expert_hosts", "slots_per_host"), [(1, 7), (3, 2), (7, 1)])
def test_hosts_with_too_few_slots_for_all_experts_are_refused(
    expert_hosts: int, slots_per_host: int
) -> None:
    few = settings(expert_hosts=expert_hosts, slots_per_host=slots_per_host)

    with pytest.raises(SettingsError, match=f"hold {expert_hosts * slots_per_host} experts"):
        few.cluster_config(TINY_MOE)


@pytest.mark.parametrize(
    ("expert_hosts", "slots_per_host"), [(1, None), (1, 8), (3, 3), (8, 1), (11, 1)]
)
def test_any_number_of_hosts_with_enough_slots_is_accepted(
    expert_hosts: int, slots_per_host: int | None
) -> None:
    enough = settings(expert_hosts=expert_hosts, slots_per_host=slots_per_host)

    config = enough.cluster_config(TINY_MOE)

    assert config.has_expert_hosts
    assert config.slots_per_host == (slots_per_host or TINY_MOE.num_experts)


def test_without_hosts_the_routers_hold_the_experts() -> None:
    config = settings(expert_hosts=0, slots_per_host=1).cluster_config(TINY_MOE)

    assert not config.has_expert_hosts


def test_a_dense_model_needs_no_hosts() -> None:
    default = settings()

    assert default.num_hosts(TINY_DENSE) == 0
    assert not default.cluster_config(TINY_DENSE).has_expert_hosts


def test_the_data_type_is_the_checkpoint_s_unless_it_is_given() -> None:
    own, given = settings(), settings(dtype="bfloat16")

    assert own.cluster_config(TINY_MOE).dtype == "float32"
    assert given.cluster_config(TINY_MOE).dtype == "bfloat16"


def test_limits_reach_the_engine() -> None:
    limits = settings(max_running=3, max_waiting=4, step_tokens=5, kv_tokens=6, reply_timeout_s=7)

    config = limits.cluster_config(TINY_MOE)

    assert config.engine == EngineConfig(
        max_running=3, max_waiting=4, step_tokens=5, kv_tokens=6, num_micro_batches=1
    )
    assert config.patience.reply_s == 7


def test_the_model_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    config = settings(model="checkpoint").cluster_config(TINY_MOE)

    assert config.model_dir == str(tmp_path / "checkpoint")


def test_processes_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)

    assert settings(routers=1, expert_hosts=3).num_threads(TINY_MOE) == 4
    assert settings(routers=2, expert_hosts=3).num_threads(TINY_DENSE) == 8
    assert settings(expert_hosts=40, routers=3).num_threads(TINY_MOE) == 1
    assert settings(threads=5).num_threads(TINY_MOE) == 5


def test_a_gpu_has_room_for_its_share_and_one_more_expert() -> None:
    assert settings(device="cuda", expert_hosts=8).num_slots(TINY_MOE) == 2
    assert settings(device="cuda", expert_hosts=3).num_slots(TINY_MOE) == 4
    assert settings(device="cuda", expert_hosts=1).num_slots(TINY_MOE) == 8
    assert settings(device="cpu", expert_hosts=8).num_slots(TINY_MOE) == 8


def test_fewer_routers_at_most_than_at_least_are_refused() -> None:
    with pytest.raises(ValidationError, match="max_routers"):
        settings(routers=3, max_routers=2)


def test_steps_whose_rows_do_not_fit_into_a_frame_are_refused() -> None:
    fits = 64 * 2**20 // (TINY_MOE.dim * 4)

    settings(step_tokens=fits).cluster_config(TINY_MOE)
    with pytest.raises(SettingsError, match="step_tokens"):
        settings(step_tokens=fits + 1).cluster_config(TINY_MOE)
