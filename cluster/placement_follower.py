"""A router's view of the placement, kept fresh by a thread that asks the Placement deployment."""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.placement_book import Briefing, RouterInfo
from routing.placement import PlacementView

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 10.0
RETRY_AFTER_S = 0.5
NOTHING_YET = Briefing(PlacementView(-1, ()), None)


class PlacementFollower:
    """The `Directory` of a router's link pool. Mutable state: the newest briefing."""

    def __init__(
        self, placement: DeploymentHandle[Any], describe: Callable[[], RouterInfo]
    ) -> None:
        self._placement = placement
        self._describe = describe
        self._briefing = NOTHING_YET
        self._news = threading.Condition()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="placement", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the asking thread runs."""
        return self._thread.is_alive()

    @property
    def key(self) -> bytes:
        """The cluster key; empty, and good for no link, while no host has joined."""
        return self._briefing.key or b""

    def view(self) -> PlacementView:
        """The newest placement known here."""
        return self._briefing.view

    def wait_newer(self, version: int, timeout_s: float) -> PlacementView:
        """The placement once it is newer than `version`, or the known one after `timeout_s`."""
        with self._news:
            self._news.wait_for(lambda: self._briefing.view.version > version, timeout_s)
        return self._briefing.view

    def report_lost(self, host_id: str) -> None:
        """Tell the Placement, without waiting for its answer."""
        self._placement.report_lost.remote(host_id)

    def stop(self) -> None:
        """End the thread after the question under way."""
        self._is_stopping.set()

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            try:
                self._ask()
            except (RayError, RayServeException, TimeoutError) as error:
                logger.warning("placement does not answer: %s", type(error).__name__)
                self._is_stopping.wait(RETRY_AFTER_S)

    def _ask(self) -> None:
        response = self._placement.brief.remote(self._describe(), self._briefing.view.version)
        briefing = response.result(timeout_s=ANSWER_TIMEOUT_S)
        if not briefing.view.hosts:
            # A Placement that was restarted knows no hosts yet; those known here still serve.
            view = replace(briefing.view, hosts=self.view().hosts)
            briefing = Briefing(view, briefing.key or self._briefing.key)
        with self._news:
            self._briefing = briefing
            self._news.notify_all()
