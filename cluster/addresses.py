"""Which of a peer's addresses to connect to."""

from collections.abc import Sequence

from cluster.config import LinkKind
from routing.errors import LinkError


def choose_address(addresses: Sequence[str], is_near: bool, link: LinkKind) -> str:
    """AF_UNIX within a node where the peer offers it, TCP otherwise; `link` may insist on one.

    Args:
        is_near: the peer runs on this node.

    Raises:
        LinkError: the peer does not listen on the kind of link asked for.
    """
    wanted: tuple[str, ...] = (link,)
    if link == "auto":
        wanted = ("unix", "tcp") if is_near else ("tcp",)
    for kind in wanted:
        for address in addresses:
            if address.startswith(f"{kind}:"):
                return address
    raise LinkError(f"{', '.join(addresses)}: does not listen on {' or '.join(wanted)}")
