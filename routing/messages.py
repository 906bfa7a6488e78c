"""The expert protocol: what a router and an expert host say to each other.

A link opens with Hello, Challenge, Proof, Welcome (`routing.handshake`). After that the router
sends ComputeRequests and the host answers each, in any order, with a ComputeReply or a Refusal that
carries the request's sequence number. Requests are pure: sending one twice does no harm.
"""

from dataclasses import dataclass

PROTOCOL_VERSION = 1

NOT_OWNER = "not_owner"
EXPIRED = "expired"
BAD_REQUEST = "bad_request"
INTERNAL = "internal"
UNAUTHORISED = "unauthorised"
WRONG_VERSION = "wrong_version"
WRONG_MODEL = "wrong_model"


@dataclass(frozen=True, slots=True)
class Hello:
    """Router to host: which protocol, and a fresh random number for the host to prove itself on."""

    version: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Challenge:
    """Host to router: its own random number, what it serves, and its proof of the cluster key."""

    version: int
    nonce: bytes
    digest: str
    dtype: str
    proof: bytes


@dataclass(frozen=True, slots=True)
class Proof:
    """Router to host: who it is, what it expects, and its proof of the cluster key."""

    router_id: str
    digest: str
    dtype: str
    proof: bytes


@dataclass(frozen=True, slots=True)
class Welcome:
    """Host to router: the link is open."""

    host_id: str


@dataclass(frozen=True, slots=True)
class ComputeRequest:
    """Rows for some experts of one layer; the payload holds them sorted as `rows` lists them.

    Attributes:
        seq: unique on the router, new for every sending, also of the same rows.
        rows: (expert, number of rows) in the payload's order.
        deadline_ms: how long the router will wait, from now; a host drops the request after that.
    """

    seq: int
    layer: int
    dtype: str
    dim: int
    rows: tuple[tuple[int, int], ...]
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class ComputeReply:
    """The experts' outputs, in the order of the request's rows."""

    seq: int
    dtype: str
    dim: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request was not computed, or a handshake not completed (`seq` is 0 then)."""

    seq: int
    code: str
    detail: str


Message = Hello | Challenge | Proof | Welcome | ComputeRequest | ComputeReply | Refusal
