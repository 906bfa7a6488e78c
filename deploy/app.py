"""The Serve application: ingress, routers, expert hosts and the placement, wired together.

`serve run --name mixray deploy.app:build model=DIR expert_hosts=2` starts it on any Ray cluster.
"""

from dataclasses import replace
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import LoggingConfig

from cluster.expert_host import ExpertHost
from cluster.placement_service import Placement
from cluster.router import Router
from deploy.ingress import Ingress
from deploy.settings import Settings
from model.checkpoint.load import open_checkpoint
from model.config import ModelConfig
from model.tokenizer import load_tokenizer

# Serve's own queues lie around the engine's, which refuses with better words; they only bound
# what a burst can pile up.
MAX_ONGOING = 1_024
MAX_QUEUED = 1_024

# The control plane asks every second: one line a call would bury what matters.
LOGGING = LoggingConfig(enable_access_log=False)


# Threads of a pool that wait for work spin for milliseconds by default, and take the cores from
# whoever has some. A tenth of a millisecond bridges the gaps within a step (DECISIONS.md, 12).
ENVIRONMENT = {"GOMP_SPINCOUNT": "10000"}


def build(settings: Settings) -> Application:
    """Check the settings and the checkpoint, then make the application.

    Raises:
        SettingsError: settings that do not fit the model.
        ModelError: the checkpoint or its tokenizer cannot be used.
    """
    model = open_checkpoint(settings.model).config
    load_tokenizer(settings.model).check_fits(model.vocab_size)
    config = settings.cluster_config(model)
    placement = _placement(settings, model)
    threads = {"num_threads": settings.num_threads(model)}
    routers = _routers(settings, threads).bind(config, placement)
    hosts = None
    if config.has_expert_hosts:
        hosts = _expert_hosts(settings, threads).bind(config, placement)
    return _ingress(settings).bind(
        config.model_dir,
        settings.served_name,
        replace(model, dtype=config.dtype),
        config.engine.kv_tokens,
        routers,
        placement,
        hosts,
    )


def _placement(settings: Settings, model: ModelConfig) -> Application:
    decorate = serve.deployment(
        name="Placement",
        logging_config=LOGGING,
        max_ongoing_requests=MAX_ONGOING,
        ray_actor_options={"num_cpus": 0},
        user_config={"num_hosts": settings.num_hosts(model)},
    )
    return decorate(Placement).bind(model.num_experts)


def _routers(settings: Settings, threads: dict[str, int]) -> serve.Deployment:
    decorate = serve.deployment(
        name="Router",
        max_queued_requests=MAX_QUEUED,
        logging_config=LOGGING,
        max_ongoing_requests=MAX_ONGOING,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=30,
        user_config=threads,
        ray_actor_options=_actor_options(
            settings, settings.cpus_per_router, settings.gpus_per_router
        ),
        **_replicas(settings.routers, settings.max_routers, settings.max_running),
    )
    return decorate(Router)


def _expert_hosts(settings: Settings, threads: dict[str, int]) -> serve.Deployment:
    per_node = settings.hosts_per_node
    limit: dict[str, Any] = {} if per_node is None else {"max_replicas_per_node": per_node}
    decorate = serve.deployment(
        name="ExpertHost",
        logging_config=LOGGING,
        num_replicas=settings.expert_hosts,
        user_config=threads,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=settings.leave_timeout_s + 1,
        ray_actor_options=_actor_options(settings, settings.cpus_per_host, settings.gpus_per_host),
        **limit,
    )
    return decorate(ExpertHost)


def _ingress(settings: Settings) -> serve.Deployment:
    decorate = serve.deployment(
        name="Ingress",
        max_queued_requests=MAX_QUEUED,
        logging_config=LOGGING,
        max_ongoing_requests=MAX_ONGOING,
        ray_actor_options={"num_cpus": 0},
        **_replicas(1, settings.max_ingress, MAX_ONGOING // 4),
    )
    return decorate(Ingress)


def _replicas(low: int, high: int | None, target_ongoing: int) -> dict[str, Any]:
    """A fixed number of replicas, or as many as the requests call for."""
    if high is None or high == low:
        return {"num_replicas": low}
    scaling = AutoscalingConfig(
        min_replicas=low,
        initial_replicas=low,
        max_replicas=high,
        target_ongoing_requests=target_ongoing,
    )
    return {"autoscaling_config": scaling}


def _actor_options(settings: Settings, num_cpus: float, num_gpus: float) -> dict[str, Any]:
    return {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus if settings.device == "cuda" else 0,
        "runtime_env": {"env_vars": ENVIRONMENT},
    }
