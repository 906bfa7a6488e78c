"""Which host holds which logical expert: pure arithmetic on names and integers.

A host has a number of slots; a slot holds one logical expert, in every layer. Copies of one
logical expert on several hosts are its physical experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from routing.errors import PlacementError

Placement = Mapping[str, tuple[int, ...]]
"""The experts of each host, ascending."""


@dataclass(frozen=True, slots=True)
class HostView:
    """A host as routers see it: where it listens and which experts it serves now."""

    host_id: str
    node_id: str
    addresses: tuple[str, ...]
    expert_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlacementView:
    """One version of the placement. Versions only grow."""

    version: int
    hosts: tuple[HostView, ...]

    def covers(self, num_experts: int) -> bool:
        """Whether every expert is served by some host."""
        served = {expert_id for host in self.hosts for expert_id in host.expert_ids}
        return served.issuperset(range(num_experts))


def place(
    num_experts: int, slots: Mapping[str, int], current: Placement, load: Sequence[float]
) -> dict[str, tuple[int, ...]]:
    """Give every expert a host and every host its share, moving as little as possible.

    What living hosts hold stays. Experts that nobody holds go, the most loaded first, to the host
    with the fewest experts that has room. Then experts move one at a time from the fullest host to
    the emptiest with room while that brings the two closer; copies on hosts that hold other experts
    too are dropped, since they are left over from a host that went and came back; and hosts still
    empty (more hosts than experts) take copies of the experts with the most load per copy.

    Args:
        slots: how many experts each living host can hold.
        current: what hosts hold now; hosts that are not in `slots` are gone.
        load: the load of each expert, in any unit; equal numbers where it is unknown.

    Raises:
        PlacementError: fewer slots than experts.
    """
    if sum(slots.values()) < num_experts:
        raise PlacementError(
            f"{num_experts} experts do not fit into the {sum(slots.values())} slots of "
            f"{len(slots)} hosts; add hosts, or slots per host"
        )
    held = {host: list(current.get(host, ()))[: slots[host]] for host in sorted(slots)}
    _adopt_orphans(num_experts, slots, held, load)
    _even_out(slots, held)
    while _drop_a_surplus_copy(held):
        _even_out(slots, held)
    _copy_to_the_empty(num_experts, slots, held, load)
    return {host: tuple(sorted(experts)) for host, experts in held.items()}


def _adopt_orphans(
    num_experts: int, slots: Mapping[str, int], held: dict[str, list[int]], load: Sequence[float]
) -> None:
    placed = {expert for experts in held.values() for expert in experts}
    orphans = sorted(set(range(num_experts)) - placed, key=lambda expert: (-load[expert], expert))
    for expert in orphans:
        if all(len(held[host]) >= slots[host] for host in held):
            _drop_a_copy(held)
        roomy = [host for host in held if len(held[host]) < slots[host]]
        held[min(roomy, key=lambda host: (len(held[host]), host))].append(expert)


def _drop_a_copy(held: dict[str, list[int]]) -> None:
    """Free a slot: with more slots than experts and none free, some expert is held twice."""
    copies = [expert for experts in held.values() for expert in experts]
    twice = max(copies, key=lambda expert: (copies.count(expert), expert))
    host = max((host for host in held if twice in held[host]), key=lambda host: len(held[host]))
    held[host].remove(twice)


def _even_out(slots: Mapping[str, int], held: dict[str, list[int]]) -> None:
    while True:
        roomy = [host for host in held if len(held[host]) < slots[host]]
        if not roomy:
            return
        emptiest = min(roomy, key=lambda host: (len(held[host]), host))
        fullest = max(held, key=lambda host: (len(held[host]), host))
        if len(held[fullest]) - len(held[emptiest]) < 2:
            return
        moved = max(set(held[fullest]) - set(held[emptiest]))
        held[fullest].remove(moved)
        held[emptiest].append(moved)


def _drop_a_surplus_copy(held: dict[str, list[int]]) -> bool:
    """Drop one copy, from the fullest host that holds it beside others; whether there was one."""
    copies = [expert for experts in held.values() for expert in experts]
    twice = {expert for expert in copies if copies.count(expert) > 1}
    surplus = [host for host in held if len(held[host]) > 1 and twice & set(held[host])]
    if not surplus:
        return False
    host = max(surplus, key=lambda host: (len(held[host]), host))
    held[host].remove(max(twice & set(held[host])))
    return True


def _copy_to_the_empty(
    num_experts: int, slots: Mapping[str, int], held: dict[str, list[int]], load: Sequence[float]
) -> None:
    for host in held:
        if not held[host] and slots[host] > 0:
            copies = [expert for experts in held.values() for expert in experts]
            hottest = max(
                range(num_experts),
                key=lambda expert: (load[expert] / copies.count(expert), -expert),
            )
            held[host].append(hottest)
