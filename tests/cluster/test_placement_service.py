"""The Placement deployment without Serve: who asks waits for news, and no longer than a second."""

import asyncio
import time

import pytest

from cluster import placement_service
from cluster.placement_book import HostReport
from cluster.placement_service import Placement
from tests.cluster.placement import NUM_EXPERTS, ROUTER, host_info

ALL = frozenset(range(NUM_EXPERTS))
NOTHING: frozenset[int] = frozenset()


def placement(num_hosts: int = 1) -> Placement:
    service = Placement(NUM_EXPERTS)
    service.reconfigure({"num_hosts": num_hosts})
    return service


@pytest.fixture
def short_poll(monkeypatch: pytest.MonkeyPatch) -> float:
    """A poll that ends soon, so that the tests do not wait."""
    monkeypatch.setattr(placement_service, "POLL_S", 0.05)
    return 0.05


def test_a_host_that_shall_hold_something_else_hears_of_it_at_once() -> None:
    async def run() -> None:
        service = placement()
        await service.join(host_info("a"), NOTHING, None)

        start_s = time.monotonic()
        assigned = await service.beat("a", NOTHING, HostReport())

        assert assigned == ALL
        assert time.monotonic() - start_s < placement_service.POLL_S / 2

    asyncio.run(run())


def test_a_host_that_holds_what_it_shall_waits_for_the_poll_to_end(short_poll: float) -> None:
    async def run() -> None:
        service = placement()
        await service.join(host_info("a"), NOTHING, None)

        start_s = time.monotonic()
        assigned = await service.beat("a", ALL, HostReport())

        assert assigned == ALL
        assert time.monotonic() - start_s >= short_poll

    asyncio.run(run())


def test_an_unknown_host_hears_of_it_at_once() -> None:
    async def run() -> None:
        start_s = time.monotonic()

        assert await placement().beat("stranger", NOTHING, HostReport()) is None
        assert time.monotonic() - start_s < placement_service.POLL_S / 2

    asyncio.run(run())


def test_a_waiting_host_is_woken_when_another_takes_its_experts_over() -> None:
    async def run() -> None:
        service = placement()
        await service.join(host_info("old"), NOTHING, None)
        waiting = asyncio.create_task(service.beat("old", ALL, HostReport()))
        await service.join(host_info("new"), NOTHING, None)
        share = await service.beat("new", NOTHING, HostReport())
        assert share is not None and not waiting.done()

        new = asyncio.create_task(service.beat("new", share, HostReport()))
        told = await asyncio.wait_for(waiting, placement_service.POLL_S / 2)
        new.cancel()

        assert told == ALL - share

    asyncio.run(run())


def test_a_waiting_host_is_woken_when_it_is_reported_lost() -> None:
    async def run() -> None:
        service = placement()
        await service.join(host_info("a"), NOTHING, None)
        waiting = asyncio.create_task(service.beat("a", ALL, HostReport()))
        await asyncio.sleep(0)

        await service.report_lost("a")

        assert await asyncio.wait_for(waiting, placement_service.POLL_S / 2) is None

    asyncio.run(run())


def test_a_router_with_an_old_placement_is_answered_at_once() -> None:
    async def run() -> None:
        service = placement()
        await service.join(host_info("a"), NOTHING, None)

        start_s = time.monotonic()
        briefing = await service.brief(ROUTER, -1)

        assert [host.host_id for host in briefing.view.hosts] == ["a"]
        assert time.monotonic() - start_s < placement_service.POLL_S / 2

    asyncio.run(run())


def test_a_router_that_knows_the_placement_waits_for_the_poll_to_end(short_poll: float) -> None:
    async def run() -> None:
        service = placement()
        known = (await service.brief(ROUTER, -1)).view

        start_s = time.monotonic()
        briefing = await service.brief(ROUTER, known.version)

        assert briefing.view == known
        assert time.monotonic() - start_s >= short_poll

    asyncio.run(run())


def test_waiting_routers_are_all_woken_by_a_change() -> None:
    async def run() -> None:
        service = placement()
        known = (await service.brief(ROUTER, -1)).view
        waiting = [asyncio.create_task(service.brief(ROUTER, known.version)) for _ in range(3)]
        await asyncio.sleep(0)

        await service.join(host_info("a"), NOTHING, None)
        briefings = await asyncio.wait_for(asyncio.gather(*waiting), placement_service.POLL_S / 2)

        assert {briefing.view.version for briefing in briefings} == {known.version + 1}

    asyncio.run(run())


def test_the_key_is_given_to_hosts_and_routers_alike() -> None:
    async def run() -> None:
        service = placement()

        key = await service.join(host_info("a"), NOTHING, None)
        briefing = await service.brief(ROUTER, -1)

        assert briefing.key == key

    asyncio.run(run())


def test_status_is_plain_data_about_hosts_and_routers() -> None:
    async def run() -> None:
        service = placement()
        await service.join(host_info("a"), NOTHING, None)
        asked = asyncio.create_task(
            service.beat(
                "a", ALL, HostReport(rows_by_expert={3: 20}, loaded_bytes=10, wanted_bytes=40)
            )
        )
        briefing = await service.brief(ROUTER, -1)
        await asyncio.sleep(0)
        asked.cancel()

        status = await service.status()

        assert status == {
            "version": briefing.view.version + 1,
            "expert_hosts": [
                {
                    "id": "a",
                    "pid": 1,
                    "node": "127.0.0.1",
                    "address": "tcp:127.0.0.1:1",
                    "addresses": ["unix:a", "tcp:127.0.0.1:1"],
                    "slots": NUM_EXPERTS,
                    "experts": list(range(NUM_EXPERTS)),
                    "rows_by_expert": {"3": 20},
                    "loaded_bytes": 10,
                    "wanted_bytes": 40,
                }
            ],
            "routers": [
                {
                    "id": "router",
                    "pid": 1,
                    "node": "127.0.0.1",
                    "running": 0,
                    "waiting": 0,
                    "kv_tokens_used": 0,
                    "kv_tokens": 64,
                    "lost_hosts": 0,
                    "resent": 0,
                }
            ],
        }

    asyncio.run(run())
