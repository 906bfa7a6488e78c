"""What can go wrong between routers and expert hosts.

RoutingError
    PlacementError       the experts do not fit on the hosts
    FrameError           bytes that are not a frame of this protocol
    LinkError            one link cannot be used any more
        LinkClosed       the peer is gone
        LinkTimeout      the peer did not answer in time
        HandshakeError   the peer is not who it should be
    ExpertUnavailable    no living host serves an expert, and none took it over in time
    ExpertFault          hosts fail on the rows themselves, whichever host it is
"""


class RoutingError(Exception):
    """Root of this room's errors."""


class PlacementError(RoutingError):
    """The experts do not fit on the hosts."""


class FrameError(RoutingError):
    """Bytes that are not a frame of this protocol; the link that sent them is closed."""


class LinkError(RoutingError):
    """One link cannot be used any more."""


class LinkClosed(LinkError):
    """The peer is gone."""


class LinkTimeout(LinkError):
    """The peer did not answer in time."""


class HandshakeError(LinkError):
    """The peer speaks another version, serves another checkpoint or lacks the cluster key."""


class ExpertUnavailable(RoutingError):
    """No living host serves an expert, and none took it over in time."""


class ExpertFault(RoutingError):
    """Hosts fail on the rows themselves, whichever host it is."""
