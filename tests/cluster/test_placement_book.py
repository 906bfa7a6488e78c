"""The book: who holds what, and that no expert is ever missing while things move."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.placement_book import LOST_AFTER_S, PlacementBook
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

    assigned = book.beat("a", NOTHING, {}, clock())

    assert assigned == NOTHING


def test_experts_are_shared_out_once_all_hosts_have_joined(clock: FakeClock) -> None:
    book = new_book(clock, num_hosts=2)
    book.join(host_info("a"), NOTHING, None, clock())
    book.join(host_info("b"), NOTHING, None, clock())

    shares = [book.beat(name, NOTHING, {}, clock()) for name in "ab"]

    assert [len(share or ()) for share in shares] == [4, 4]
    assert frozenset().union(*[share or () for share in shares]) == set(ALL)


def test_hosts_that_came_are_enough_once_patience_is_over(clock: FakeClock) -> None:
    book = new_book(clock, num_hosts=2)
    book.join(host_info("a"), NOTHING, None, clock())
    clock.advance(PATIENCE_S)
    book.beat("a", NOTHING, {}, clock())

    book.sweep(clock())

    assert book.beat("a", NOTHING, {}, clock()) == set(ALL)


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

    assert told_before == set(ALL)
    assert old.told == set(ALL) - new.held
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
    assert book.beat("silent", silent.held, {}, clock()) is None


def test_an_unknown_host_is_told_to_join(clock: FakeClock) -> None:
    book = new_book(clock)

    assert book.beat("stranger", NOTHING, {}, clock()) is None


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
    assert old.told == {0, 1, 2, 3}

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

    book.beat("a", frozenset({2, 1}), {1: 30}, clock())

    assert book.hosts() == [(host_info("a"), (1, 2), {1: 30})]


MAX_HOSTS = 5
HOST_INDEX = st.integers(0, MAX_HOSTS - 1)


class Joins(RuleBasedStateMachine):
    """Hosts with room join and obey, as slowly and in whatever order they like."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.book = new_book(self.clock)
        self.hosts: list[SlowHost] = []
        self.num_joined = 0
        self.seen = view_of(self.book, self.clock)

    @initialize(num_hosts=st.integers(1, 3))
    def begin(self, num_hosts: int) -> None:
        for _ in range(num_hosts):
            self.join()
        self.rest()

    @precondition(lambda self: len(self.hosts) < MAX_HOSTS)
    @rule()
    def join(self) -> None:
        self.num_joined += 1
        self.hosts.append(SlowHost(f"host-{self.num_joined:02}", self.clock))
        self.hosts[-1].join(self.book)

    @rule(index=HOST_INDEX)
    def beat(self, index: int) -> None:
        host = self.hosts[index % len(self.hosts)]
        if host.told is None:
            host.beat(self.book)

    @rule(index=HOST_INDEX)
    def obey(self, index: int) -> None:
        host = self.hosts[index % len(self.hosts)]
        host.load()
        host.drop()

    @rule()
    def rest(self) -> None:
        settle(self.book, self.hosts)

        view = view_of(self.book, self.clock)
        assert view.covers(NUM_EXPERTS)
        assert {host.host_id: frozenset(host.expert_ids) for host in view.hosts} == {
            host.info.host_id: host.held for host in self.hosts
        }
        assert all(host.held for host in self.hosts)

    @invariant()
    def versions_grow_with_every_change_and_only_then(self) -> None:
        before, self.seen = self.seen, view_of(self.book, self.clock)
        assert self.seen.version >= before.version
        assert (self.seen.version == before.version) == (self.seen.hosts == before.hosts)

    @invariant()
    def no_host_is_named_for_what_it_does_not_hold(self) -> None:
        held = {host.info.host_id: host.held for host in self.hosts}
        for host in view_of(self.book, self.clock).hosts:
            assert held[host.host_id].issuperset(host.expert_ids)

    @invariant()
    def every_expert_is_served(self) -> None:
        assert not self.hosts or view_of(self.book, self.clock).covers(NUM_EXPERTS)


class JoinsAndDeaths(Joins):
    """Hosts die, or are taken for dead, and every expert is served again after a rest."""

    @precondition(lambda self: len(self.hosts) > 1)
    @rule(index=HOST_INDEX)
    def die(self, index: int) -> None:
        host = self.hosts.pop(index % len(self.hosts))
        self.book.lose(host.info.host_id, self.clock())

    @rule(index=HOST_INDEX)
    def be_taken_for_dead(self, index: int) -> None:
        self.book.lose(self.hosts[index % len(self.hosts)].info.host_id, self.clock())

    @invariant()
    def every_expert_is_served(self) -> None:
        """Not at every moment: a dead host's experts must be loaded first."""


MACHINE_SETTINGS = settings(max_examples=60, stateful_step_count=50, deadline=None)


class TestJoins(Joins.TestCase):  # type: ignore[name-defined, misc]
    settings = MACHINE_SETTINGS


class TestJoinsAndDeaths(JoinsAndDeaths.TestCase):  # type: ignore[name-defined, misc]
    settings = MACHINE_SETTINGS
