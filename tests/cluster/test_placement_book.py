"""The book: who holds what, and that no expert is ever missing while things move."""

import random
from collections.abc import Callable

import pytest

from cluster.placement_book import LOST_AFTER_S, HostReport, PlacementBook
from tests.cluster.placement import (
    EPOCH_MS,
    NUM_EXPERTS,
    PATIENCE_S,
    ROUTER,
    SlowHost,
    host_info,
    new_book,
    published,
    settle,
    view_of,
)
from tests.faults import FakeClock

ALL = tuple(range(NUM_EXPERTS))
NOTHING: frozenset[int] = frozenset()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def settled(clock: FakeClock, *host_ids: str) -> tuple[PlacementBook, list[SlowHost]]:
    """A book whose hosts have joined and obeyed."""
    book = new_book(clock, num_hosts=len(host_ids))
    hosts = [SlowHost(host_id, clock) for host_id in host_ids]
    for host in hosts:
        host.join(book)
    settle(book, hosts)
    return book, hosts


def test_nothing_is_placed_until_all_hosts_have_joined(clock: FakeClock) -> None:
    book = new_book(clock, num_hosts=2)
    book.join(host_info("a"), NOTHING, None, clock())

    assigned = book.beat("a", NOTHING, HostReport(), clock())

    assert assigned == NOTHING


def test_experts_are_shared_out_once_all_hosts_have_joined(clock: FakeClock) -> None:
    book = new_book(clock, num_hosts=2)
    book.join(host_info("a"), NOTHING, None, clock())
    book.join(host_info("b"), NOTHING, None, clock())

    shares = [book.beat(name, NOTHING, HostReport(), clock()) for name in "ab"]

    assert [len(share or ()) for share in shares] == [4, 4]
    assert frozenset().union(*[share or () for share in shares]) == frozenset(ALL)


def test_hosts_that_came_are_enough_once_patience_is_over(clock: FakeClock) -> None:
    book = new_book(clock, num_hosts=2)
    book.join(host_info("a"), NOTHING, None, clock())
    clock.advance(PATIENCE_S)
    book.beat("a", NOTHING, HostReport(), clock())

    book.sweep(clock())

    assert book.beat("a", NOTHING, HostReport(), clock()) == frozenset(ALL)


def test_routers_see_only_what_hosts_really_hold(clock: FakeClock) -> None:
    book = new_book(clock)
    host = SlowHost("a", clock)
    host.join(book)
    host.beat(book)
    before = published(book, clock)

    host.load()
    host.beat(book)

    assert before == {"a": ()}
    assert published(book, clock) == {"a": ALL}


def test_an_expert_is_kept_until_the_host_that_takes_it_over_holds_it(clock: FakeClock) -> None:
    book, [old] = settled(clock, "old")
    new = SlowHost("new", clock)

    new.join(book)
    old.beat(book)
    new.beat(book)
    told_before = old.told
    new.load()
    new.beat(book)
    old.beat(book)

    assert told_before == frozenset(ALL)
    assert old.told == frozenset(ALL) - new.held
    assert published(book, clock) == {"new": (4, 5, 6, 7), "old": (0, 1, 2, 3)}


def test_the_experts_of_a_lost_host_go_to_the_others(clock: FakeClock) -> None:
    book, [left, _] = settled(clock, "left", "lost")

    book.lose("lost", clock())
    settle(book, [left])

    assert published(book, clock) == {"left": ALL}


def test_losing_a_host_twice_changes_nothing(clock: FakeClock) -> None:
    book, _ = settled(clock, "left", "lost")
    book.lose("lost", clock())
    version = book.version

    book.lose("lost", clock())

    assert book.version == version


def test_a_silent_host_is_swept_and_told_to_join_again(clock: FakeClock) -> None:
    book, [silent, speaking] = settled(clock, "silent", "speaking")
    clock.advance(LOST_AFTER_S)
    speaking.beat(book)
    clock.advance(0.1)

    book.sweep(clock())

    assert list(published(book, clock)) == ["speaking"]
    assert book.beat("silent", silent.held, HostReport(), clock()) is None


def test_an_unknown_host_is_told_to_join(clock: FakeClock) -> None:
    book = new_book(clock)

    assert book.beat("stranger", NOTHING, HostReport(), clock()) is None


def test_what_is_held_stays_served_while_the_rest_has_no_room(clock: FakeClock) -> None:
    book = new_book(clock, num_hosts=2)
    hosts = [SlowHost(name, clock, num_slots=4) for name in "ab"]
    for host in hosts:
        host.join(book)
    settle(book, hosts)

    book.lose("b", clock())
    settle(book, hosts[:1])

    assert published(book, clock) == {"a": (0, 2, 4, 6)}


def test_the_next_host_to_join_brings_back_what_had_no_room(clock: FakeClock) -> None:
    book = new_book(clock, num_hosts=2)
    hosts = [SlowHost(name, clock, num_slots=4) for name in "abc"]
    for host in hosts[:2]:
        host.join(book)
    settle(book, hosts[:2])
    book.lose("b", clock())

    hosts[2].join(book)
    settle(book, [hosts[0], hosts[2]])

    assert view_of(book, clock).covers(NUM_EXPERTS)


def test_a_book_without_hosts_plans_nothing_at_each_sweep(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    book, _ = settled(clock, "a")
    book.lose("a", clock())
    caplog.clear()

    book.sweep(clock())

    assert not caplog.records


def test_an_expert_that_a_host_was_told_to_drop_counts_as_dropped(clock: FakeClock) -> None:
    book, [old] = settled(clock, "old")
    new = SlowHost("new", clock)
    new.join(book)
    settle(book, [new])
    old.beat(book)
    assert old.told == frozenset({0, 1, 2, 3})

    # The plan changes back before `old` has obeyed: `new` must not give the experts up yet.
    book.lose("new", clock())
    new.join(book)
    new.beat(book)

    assert new.told is not None and new.told >= new.held == {4, 5, 6, 7}
    assert published(book, clock)["old"] == (0, 1, 2, 3)


def test_a_key_is_made_once(clock: FakeClock) -> None:
    book = new_book(clock)

    keys = {book.key, book.key, book.brief(ROUTER, clock()).key}

    assert [len(key) for key in keys] == [32]


def test_a_new_book_adopts_the_key_of_a_host_that_joins_again(clock: FakeClock) -> None:
    _, [host] = settled(clock, "a")
    book = new_book(clock)

    host.join(book)

    assert book.key == host.key is not None


def test_a_new_book_shows_at_once_what_joining_hosts_still_hold(clock: FakeClock) -> None:
    _, hosts = settled(clock, "a", "b")
    book = new_book(clock, num_hosts=3, epoch_ms=EPOCH_MS + 1_000)

    for host in hosts:
        host.join(book)

    assert view_of(book, clock).covers(NUM_EXPERTS)


def test_a_new_book_moves_nothing_that_is_held(clock: FakeClock) -> None:
    _, hosts = settled(clock, "a", "b", "c")
    before = [host.held for host in hosts]
    book = new_book(clock, num_hosts=3, epoch_ms=EPOCH_MS + 1_000)

    for host in hosts:
        host.join(book)
    settle(book, hosts)

    assert [host.held for host in hosts] == before


def test_versions_of_a_book_start_at_its_epoch(clock: FakeClock) -> None:
    book = new_book(clock, epoch_ms=77)

    assert book.version == 77


def test_routers_are_listed_while_they_ask(clock: FakeClock) -> None:
    book = new_book(clock)
    book.brief(ROUTER, clock())
    asked = book.routers()

    clock.advance(LOST_AFTER_S + 0.1)
    book.sweep(clock())

    assert (asked, book.routers()) == ([ROUTER], [])


def test_hosts_are_listed_with_what_they_hold_and_computed(clock: FakeClock) -> None:
    book = new_book(clock)
    book.join(host_info("a"), NOTHING, None, clock())

    book.beat("a", frozenset({2, 1}), HostReport(rows_by_expert={1: 30}), clock())

    [host] = book.hosts()
    assert (host.info, host.expert_ids) == (host_info("a"), (1, 2))
    assert host.report.rows_by_expert == {1: 30}


class World:
    """Hosts that join, die and are taken for dead, and obey as slowly as the dice will."""

    def __init__(self, seed: int) -> None:
        self.clock = FakeClock()
        self.book = new_book(self.clock)
        self.hosts: list[SlowHost] = []
        self._rng = random.Random(seed)
        self._num_joined = 0
        self._seen = view_of(self.book, self.clock)
        for _ in range(self._rng.randint(1, 3)):
            self.join()
        settle(self.book, self.hosts)

    def join(self) -> None:
        if len(self.hosts) < 5:
            self._num_joined += 1
            self.hosts.append(SlowHost(f"host-{self._num_joined:03}", self.clock))
            self.hosts[-1].join(self.book)

    def beat(self) -> None:
        host = self._rng.choice(self.hosts)
        if host.told is None:
            host.beat(self.book)

    def load(self) -> None:
        self._rng.choice(self.hosts).load()

    def obey(self) -> None:
        host = self._rng.choice(self.hosts)
        host.load()
        host.drop()

    def die(self) -> None:
        if len(self.hosts) > 1:
            host = self.hosts.pop(self._rng.randrange(len(self.hosts)))
            self.book.lose(host.info.host_id, self.clock())

    def be_taken_for_dead(self) -> None:
        self.book.lose(self._rng.choice(self.hosts).info.host_id, self.clock())

    def move(self, weights: dict[Callable[["World"], None], int]) -> None:
        """One event, as likely as its weight."""
        [event] = self._rng.choices(list(weights), list(weights.values()))
        event(self)

    def check(self) -> None:
        """Versions grow with every change; no host is named for what it does not hold."""
        before, self._seen = self._seen, view_of(self.book, self.clock)
        assert self._seen.version >= before.version
        assert self._seen.version > before.version or self._seen.hosts == before.hosts
        held = {host.info.host_id: host.held for host in self.hosts}
        for host in self._seen.hosts:
            assert held[host.host_id].issuperset(host.expert_ids)

    def check_at_rest(self) -> None:
        """Once all have obeyed, all experts are served and every host has its share."""
        settle(self.book, self.hosts)
        view = view_of(self.book, self.clock)
        assert view.covers(NUM_EXPERTS)
        assert all(host.held for host in self.hosts)
        assert {host.host_id: frozenset(host.expert_ids) for host in view.hosts} == {
            host.info.host_id: host.held for host in self.hosts
        }


OBEDIENCE: dict[Callable[[World], None], int] = {
    World.beat: 8,
    World.load: 2,
    World.obey: 8,
    World.join: 1,
}


@pytest.mark.parametrize("seed", range(20))
def test_every_expert_is_served_at_every_moment_while_hosts_join(seed: int) -> None:
    world = World(seed)

    for _ in range(100):
        world.move(OBEDIENCE)
        world.check()
        assert view_of(world.book, world.clock).covers(NUM_EXPERTS)

    world.check_at_rest()


@pytest.mark.parametrize("seed", range(20))
def test_every_expert_is_served_again_after_any_deaths(seed: int) -> None:
    world = World(seed)

    for step in range(400):
        world.move(OBEDIENCE | {World.die: 1, World.be_taken_for_dead: 1})
        world.check()
        if step % 100 == 99:
            world.check_at_rest()


def test_a_host_that_leaves_serves_on_until_others_hold_its_experts(clock: FakeClock) -> None:
    book, hosts = settled(clock, "a", "b")

    book.leave("a", clock())
    before = published(book, clock)
    settle(book, hosts)

    assert set(before["a"]) | set(before["b"]) == set(ALL) and before["a"]
    assert published(book, clock) == {"a": (), "b": ALL}


def test_the_last_host_cannot_hand_its_experts_to_anybody(clock: FakeClock) -> None:
    book, hosts = settled(clock, "a")

    book.leave("a", clock())
    settle(book, hosts)

    assert published(book, clock) == {"a": ALL}


def test_a_router_that_asks_first_does_not_make_a_new_book_forget_the_key(
    clock: FakeClock,
) -> None:
    old, hosts = settled(clock, "a")
    new = new_book(clock)

    asked = new.brief(ROUTER, clock())
    new.join(hosts[0].info, hosts[0].held, hosts[0].key, clock())

    assert asked.key is None
    assert new.brief(ROUTER, clock()).key == old.key
