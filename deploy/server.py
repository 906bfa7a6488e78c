"""Bringing the application up on a Ray cluster, keeping watch over it, and taking it down."""

import json
import logging
import signal
import socket
import time
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from rich.console import Console

from cluster.handle import APP_NAME, connect
from deploy.app import build
from deploy.loading import showing_loading
from deploy.settings import Settings

WATCH_PERIOD_S = 1.0
FAREWELL_S = 3.0
LOG_FOLDER = "/tmp/ray/session_latest/logs/serve"


class ServerError(Exception):
    """The application could not be brought up."""


class AlreadyServing(ServerError):
    """Somebody else's application runs on the cluster; it is left alone."""


class Server:
    """One `mixray serve`.

    Args:
        address: an existing Ray cluster; None starts one on this machine.
    """

    def __init__(
        self, settings: Settings, host: str, port: int, address: str | None, console: Console
    ) -> None:
        self._settings = settings
        self._host = host
        self._port = port
        self._address = address
        self._console = console

    def run(self) -> None:
        """Bring up, say so, and stay until interrupted or until the application is gone.

        Raises:
            ModelError, SettingsError: the checkpoint or the settings cannot be served.
            ServerError: the port is taken, or an actor cannot start.
        """
        application = build(self._settings)
        _check_port(self._host, self._port)
        quiet()
        try:
            self._bring_up(application)
            self._announce()
            self._watch()
        except AlreadyServing:
            ray.shutdown()
            raise
        except KeyboardInterrupt:
            pass
        finally:
            self._take_down()

    def _bring_up(self, application: serve.Application) -> None:
        started_s = time.monotonic()
        with self._console.status("starting Ray") as progress:
            self._start_ray()
            # Ray has set a handler of its own, which would leave the application up.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            progress.update("starting the HTTP server")
            if APP_NAME in serve.status().applications:
                raise AlreadyServing("this cluster serves mixray already; `mixray stop` ends that")
            serve.start(http_options=HTTPOptions(host=self._host, port=self._port))
            progress.update(f"loading {self._settings.served_name}")
            with showing_loading(progress, self._settings.served_name):
                self._deploy(application)
        self._console.print(f"ready in {time.monotonic() - started_s:.0f} s\n")

    def _deploy(self, application: serve.Application) -> None:
        try:
            serve.run(application, name=APP_NAME, route_prefix="/")
        except RuntimeError as error:
            raise ServerError(f"{error}\nlogs: {LOG_FOLDER}") from error

    def _start_ray(self) -> None:
        if self._address is not None:
            ray.init(address=self._address, logging_level=logging.ERROR, log_to_driver=False)
            return
        ray.init(
            address="local",
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )

    def _announce(self) -> None:
        settings = self._settings
        host = "127.0.0.1" if self._host == "0.0.0.0" else self._host
        url = f"http://{host}:{self._port}"
        body = {
            "model": settings.served_name,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "temperature": 0,
        }
        show = self._console.print
        show(f"[bold]{settings.served_name}[/] at [bold]{url}[/]\n")
        for host in connect().status()["expert_hosts"]:
            show(f"  {host['id']}  pid {host['pid']}  experts {host['experts']}")
        for router in connect().status()["routers"]:
            show(f"  {router['id']}  pid {router['pid']}")
        # With several clusters on a machine, `--address` tells `status` and `stop` which is meant.
        show(f"  Ray at {ray.get_runtime_context().gcs_address}")
        command = f"curl {url}/v1/chat/completions -H 'content-type: application/json' \\\n"
        show(f"\n{command}  -d '{json.dumps(body)}'\n", soft_wrap=True, markup=False)
        show("`mixray chat` to talk, `mixray status` to look, Ctrl-C to stop")

    def _watch(self) -> None:
        """Return once somebody deleted the application."""
        while APP_NAME in serve.status().applications:
            time.sleep(WATCH_PERIOD_S)
        self._console.print("the application was stopped")
        # Who stopped it looks once a second whether it is gone, and then leaves the cluster: Ray
        # ends processes whose cluster goes before they do.
        time.sleep(FAREWELL_S)

    def _take_down(self) -> None:
        """Leave no process of ours behind; a cluster that we joined goes on."""
        if not ray.is_initialized():
            return
        with self._console.status("stopping"):
            if self._address is not None:
                _leave_cluster()
            ray.shutdown()


def application_status(address: str) -> dict[str, Any]:
    """What runs where, Serve's view of the deployments included.

    Raises:
        NotReady: no application runs there.
        ServerError: it does not answer.
    """
    quiet()
    try:
        answer = connect(address).status()
    except (RayError, TimeoutError) as error:
        raise ServerError("the application does not answer") from error
    overview = serve.status().applications[APP_NAME]
    deployments = [
        {
            "name": name,
            "status": str(deployment.status.value),
            "replicas": sum(deployment.replica_states.values()),
        }
        for name, deployment in overview.deployments.items()
    ]
    return {**answer, "status": str(overview.status.value), "deployments": deployments}


def stop_application(address: str) -> None:
    """Delete the application."""
    quiet()
    connect(address)
    serve.delete(APP_NAME)


def quiet() -> None:
    """Keep Serve's own progress lines out of ours."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


def _leave_cluster() -> None:
    """Delete our application, and with the last one Serve's HTTP server: it holds the port."""
    if APP_NAME in serve.status().applications:
        serve.delete(APP_NAME)
    if not serve.status().applications:
        serve.shutdown()  # type: ignore[no-untyped-call]


def _check_port(host: str, port: int) -> None:
    """Fail now and clearly, not in an actor's log.

    Raises:
        ServerError: the address is not ours, or somebody listens there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServerError(f"{host}:{port}: {error.strerror}; choose another --port") from error
