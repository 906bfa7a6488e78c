"""Expert hosts without experts: they join, ask and obey, each step only when told to."""

from cluster.placement_book import HostInfo, HostReport, PlacementBook, RouterInfo
from routing.placement import PlacementView
from tests.faults import FakeClock

NUM_EXPERTS = 8
EPOCH_MS = 1_000_000
PATIENCE_S = 60.0
ROUTER = RouterInfo(
    router_id="router",
    node_id="node",
    node_ip="127.0.0.1",
    pid=1,
    num_running=0,
    num_waiting=0,
    kv_tokens_used=0,
    kv_tokens=64,
)


def host_info(host_id: str, num_slots: int = NUM_EXPERTS) -> HostInfo:
    return HostInfo(
        host_id=host_id,
        node_id="node",
        node_ip="127.0.0.1",
        pid=1,
        addresses=(f"unix:{host_id}", "tcp:127.0.0.1:1"),
        num_slots=num_slots,
    )


def new_book(clock: FakeClock, num_hosts: int = 1, epoch_ms: int = EPOCH_MS) -> PlacementBook:
    book = PlacementBook(NUM_EXPERTS, PATIENCE_S, clock(), epoch_ms)
    book.num_hosts = num_hosts
    return book


def view_of(book: PlacementBook, clock: FakeClock) -> PlacementView:
    """The placement, as a router is told of it."""
    return book.brief(ROUTER, clock()).view


def published(book: PlacementBook, clock: FakeClock) -> dict[str, tuple[int, ...]]:
    """The experts of each host, as routers see them."""
    return {host.host_id: host.expert_ids for host in view_of(book, clock).hosts}


class SlowHost:
    """A host that obeys in two moves, and only when told to: first it loads, then it drops.

    Attributes:
        held: what it really holds.
        told: what it shall hold, while it has not yet obeyed.
    """

    def __init__(self, host_id: str, clock: FakeClock, num_slots: int = NUM_EXPERTS) -> None:
        self.info = host_info(host_id, num_slots)
        self.held: frozenset[int] = frozenset()
        self.told: frozenset[int] | None = None
        self.key: bytes | None = None
        self._clock = clock

    def join(self, book: PlacementBook) -> None:
        book.join(self.info, self.held, self.key, self._clock())
        self.key = book.key

    def beat(self, book: PlacementBook) -> None:
        """Ask; a host that the book does not know joins again."""
        self.told = book.beat(self.info.host_id, self.held, HostReport(), self._clock())
        if self.told is None:
            self.join(book)

    def load(self) -> None:
        if self.told is not None:
            self.held |= self.told

    def drop(self) -> None:
        if self.told is not None:
            self.held &= self.told
            self.told = None

    def obey(self, book: PlacementBook) -> bool:
        """Ask and obey at once; say whether it is at rest."""
        self.beat(book)
        is_at_rest = self.told == self.held
        self.load()
        self.drop()
        return is_at_rest


def settle(book: PlacementBook, hosts: list[SlowHost]) -> None:
    """Let all hosts ask and obey until nothing changes any more."""
    for _ in range(20):
        version = book.version
        are_at_rest = [host.obey(book) for host in hosts]
        if all(are_at_rest) and book.version == version:
            return
    raise AssertionError(f"hosts never come to rest: {[host.held for host in hosts]}")
