"""Placement: every expert somewhere, within the slots, with as few moves as can be."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.errors import PlacementError
from routing.placement import HostView, Placement, PlacementView, place


@dataclass(frozen=True)
class Case:
    """The arguments of `place`."""

    num_experts: int
    slots: dict[str, int]
    current: dict[str, tuple[int, ...]]
    load: list[float]

    def place(self) -> dict[str, tuple[int, ...]]:
        return place(self.num_experts, self.slots, self.current, self.load)


def num_moves(before: Placement, after: Placement) -> int:
    """How many experts some host must load to get from one placement to the other."""
    return sum(len(set(after[host]) - set(before.get(host, ()))) for host in after)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any hosts, slots that suffice, anything held before, also by hosts that are gone."""
    num_experts = draw(st.integers(1, 16))
    names = [f"host-{number}" for number in range(draw(st.integers(1, 20)))]
    slots = {name: draw(st.integers(0, num_experts)) for name in names}
    slots[names[0]] += max(0, num_experts - sum(slots.values()))
    held = st.lists(st.integers(0, num_experts - 1), unique=True).map(tuple)
    current = {name: draw(held) for name in [*names, "gone"] if draw(st.booleans())}
    load = draw(st.lists(st.floats(0, 1e6), min_size=num_experts, max_size=num_experts))
    return Case(num_experts, slots, current, load)


@st.composite
def balanced(draw: st.DrawFn) -> tuple[Case, dict[str, tuple[int, ...]]]:
    """Alike hosts, at least two, any of which can be spared; and where they start from."""
    num_experts = draw(st.integers(1, 16))
    num_hosts = draw(st.integers(2, 20))
    num_slots = draw(st.integers(math.ceil(num_experts / (num_hosts - 1)), num_experts))
    slots = {f"host-{number}": num_slots for number in range(num_hosts)}
    load = draw(st.lists(st.floats(0, 1e6), min_size=num_experts, max_size=num_experts))
    case = Case(num_experts, slots, {}, load)
    return case, case.place()


@given(cases())
def test_every_expert_is_held_and_no_host_holds_too_much_or_one_twice(case: Case) -> None:
    placement = case.place()

    assert {expert for held in placement.values() for expert in held} == set(
        range(case.num_experts)
    )
    assert placement.keys() == case.slots.keys()
    for host, held in placement.items():
        assert len(held) <= case.slots[host]
        assert list(held) == sorted(set(held))


@given(cases())
def test_the_same_arguments_give_the_same_placement_in_whatever_order_hosts_are_named(
    case: Case,
) -> None:
    backwards = dict(reversed(case.slots.items()))

    placement = place(case.num_experts, backwards, case.current, case.load)

    assert placement == case.place()


@given(cases())
def test_nothing_moves_when_nothing_has_changed(case: Case) -> None:
    before = case.place()

    after = place(case.num_experts, case.slots, before, case.load)

    assert after == before


@given(balanced())
def test_alike_hosts_hold_alike_numbers(start: tuple[Case, dict[str, tuple[int, ...]]]) -> None:
    _, placement = start

    sizes = [len(held) for held in placement.values()]

    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


@given(balanced(), st.data())
def test_when_a_host_dies_only_the_experts_that_nobody_else_held_move(
    start: tuple[Case, dict[str, tuple[int, ...]]], data: st.DataObject
) -> None:
    case, before = start
    dead = data.draw(st.sampled_from(sorted(before)))
    living = {host: held for host, held in before.items() if host != dead}
    orphans = set(before[dead]) - {expert for held in living.values() for expert in held}

    slots = {host: case.slots[host] for host in living}
    after = place(case.num_experts, slots, before, case.load)

    assert num_moves(living, after) == len(orphans)


@given(balanced())
def test_a_host_that_joins_takes_its_share_and_nobody_else_loads_anything(
    start: tuple[Case, dict[str, tuple[int, ...]]],
) -> None:
    case, before = start
    slots = case.slots | {"newcomer": case.num_experts}

    after = place(case.num_experts, slots, before, case.load)

    assert num_moves(before | {"newcomer": ()}, after) == len(after["newcomer"])
    assert 1 <= len(after["newcomer"]) <= math.ceil(case.num_experts / len(slots))
    sizes = [len(held) for held in after.values()]
    assert max(sizes) - min(sizes) <= 1


@given(cases())
def test_too_few_slots_are_refused(case: Case) -> None:
    num_slots = sum(case.slots.values())

    with pytest.raises(PlacementError, match=f"{num_slots + 1} experts do not fit"):
        place(num_slots + 1, case.slots, {}, [1.0] * (num_slots + 1))


@pytest.mark.parametrize(
    ("num_hosts", "sizes"),
    [
        (1, [8]),
        (2, [4, 4]),
        (3, [3, 3, 2]),
        (5, [2, 2, 2, 1, 1]),
        (8, [1] * 8),
        (11, [1] * 11),
    ],
)
def test_eight_experts_spread_over_any_number_of_hosts(num_hosts: int, sizes: list[int]) -> None:
    slots = {f"host-{number:02}": 8 for number in range(num_hosts)}

    placement = place(8, slots, {}, [1.0] * 8)

    assert sorted(map(len, placement.values()), reverse=True) == sizes


def test_hosts_without_an_expert_of_their_own_copy_the_hottest() -> None:
    slots = {f"host-{number}": 1 for number in range(6)}

    placement = place(4, slots, {}, [1.0, 9.0, 2.0, 5.0])

    held = sorted(expert for experts in placement.values() for expert in experts)
    assert held == [0, 1, 1, 2, 3, 3]


def test_a_copy_gives_way_to_an_expert_that_nobody_holds() -> None:
    placement = place(2, {"a": 1, "b": 1}, {"a": (0,), "b": (0,)}, [1.0, 1.0])

    assert sorted(placement.values()) == [(0,), (1,)]


def test_a_host_with_fewer_slots_than_before_keeps_as_many_as_it_can() -> None:
    placement = place(4, {"a": 2, "b": 4}, {"a": (0, 1, 2, 3)}, [1.0] * 4)

    assert placement == {"a": (0, 1), "b": (2, 3)}


def test_a_view_covers_the_experts_that_some_host_serves() -> None:
    hosts = (HostView("a", "n", (), (0, 2)), HostView("b", "n", (), (1,)))

    view = PlacementView(1, hosts)

    assert view.covers(3)
    assert not view.covers(4)


def test_copies_left_over_from_a_host_that_came_back_are_dropped() -> None:
    slots = {"a": 8, "b": 8}
    everything_twice = {"a": tuple(range(8)), "b": tuple(range(8))}

    placement = place(8, slots, everything_twice, [1.0] * 8)

    assert sorted(placement["a"] + placement["b"]) == list(range(8))
    assert [len(experts) for experts in placement.values()] == [4, 4]
