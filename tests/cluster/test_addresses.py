"""The choice of an address: which link, and what if there is none."""

import pytest

from cluster.addresses import choose_address
from cluster.config import LinkKind
from routing.errors import LinkError

UNIX, TCP = "unix:mixray-1", "tcp:10.0.0.1:7000"


@pytest.mark.parametrize(
    ("link", "is_near", "expected"),
    [
        ("auto", True, UNIX),
        ("auto", False, TCP),
        ("tcp", True, TCP),
        ("tcp", False, TCP),
        ("unix", True, UNIX),
    ],
)
def test_a_link_is_unix_within_a_node_and_tcp_across_nodes(
    link: LinkKind, is_near: bool, expected: str
) -> None:
    assert choose_address((UNIX, TCP), is_near, link) == expected


def test_a_near_peer_without_a_unix_address_is_reached_by_tcp() -> None:
    assert choose_address((TCP,), True, "auto") == TCP


def test_a_peer_that_lacks_the_link_insisted_on_is_named() -> None:
    with pytest.raises(LinkError, match=f"{TCP}: does not listen on unix"):
        choose_address((TCP,), True, "unix")
