"""How both ends of a link prove that they hold the cluster key, and agree on what they serve.

Each side sends a fresh random number and answers the other's with an HMAC-SHA-256 over both
numbers, its role, and everything the two must agree on. A recorded proof is worthless on another
link, and neither side reveals anything to a peer without the key but a digest and a version.
"""

import hmac
import secrets
from dataclasses import dataclass

from routing.errors import HandshakeError
from routing.messages import (
    PROTOCOL_VERSION,
    UNAUTHORISED,
    WRONG_MODEL,
    WRONG_VERSION,
    Challenge,
    Hello,
    Message,
    Proof,
    Refusal,
    Welcome,
)


@dataclass(frozen=True, slots=True)
class Identity:
    """What one end says of itself.

    Attributes:
        name: of the router or the host.
        digest: fingerprint of the checkpoint.
        dtype: of the rows.
        key: the cluster key; never sent.
    """

    name: str
    digest: str
    dtype: str
    key: bytes


class RouterHandshake:
    """The router's side: send `hello()`, then feed it what comes until it returns None."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._nonce = secrets.token_bytes(32)
        self._host_is_proven = False

    def hello(self) -> Hello:
        """The first message of the link."""
        return Hello(PROTOCOL_VERSION, self._nonce)

    def receive(self, message: Message) -> Proof | None:
        """Answer the host; None once the link is open.

        Raises:
            HandshakeError: the host refused, or is not one of this cluster's.
        """
        if isinstance(message, Refusal):
            raise HandshakeError(f"the host refused: {message.code!r}: {message.detail!r}")
        if isinstance(message, Challenge) and not self._host_is_proven:
            return self._answer(message)
        if isinstance(message, Welcome) and self._host_is_proven:
            return None
        raise HandshakeError(f"{type(message).__name__} out of turn")

    def _answer(self, challenge: Challenge) -> Proof:
        if challenge.version != PROTOCOL_VERSION:
            raise HandshakeError(_wrong_version(challenge.version))
        identity = self._identity
        nonces = self._nonce + challenge.nonce
        proof = _proof(identity.key, "host", nonces, challenge.digest, challenge.dtype)
        if not hmac.compare_digest(proof, challenge.proof):
            raise HandshakeError("the host does not hold the cluster key")
        mismatch = _mismatch(identity, challenge.digest, challenge.dtype)
        if mismatch is not None:
            raise HandshakeError(mismatch)
        self._host_is_proven = True
        claims = (identity.name, identity.digest, identity.dtype)
        return Proof(*claims, _proof(identity.key, "router", nonces, *claims))


class HostHandshake:
    """The host's side: feed it what comes; it is over once `is_open`, or after a Refusal."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._nonce = secrets.token_bytes(32)
        self._hello: Hello | None = None
        self.is_open = False

    def receive(self, message: Message) -> Challenge | Welcome | Refusal:
        """Answer the router."""
        if isinstance(message, Hello) and self._hello is None:
            return self._challenge(message)
        if isinstance(message, Proof) and self._hello is not None and not self.is_open:
            return self._check(self._hello, message)
        return Refusal(0, UNAUTHORISED, f"{type(message).__name__} out of turn")

    def _challenge(self, hello: Hello) -> Challenge | Refusal:
        identity = self._identity
        if hello.version != PROTOCOL_VERSION:
            return Refusal(0, WRONG_VERSION, _wrong_version(hello.version))
        self._hello = hello
        claims = (identity.digest, identity.dtype)
        proof = _proof(identity.key, "host", hello.nonce + self._nonce, *claims)
        return Challenge(PROTOCOL_VERSION, self._nonce, *claims, proof)

    def _check(self, hello: Hello, message: Proof) -> Welcome | Refusal:
        identity = self._identity
        claims = (message.router_id, message.digest, message.dtype)
        proof = _proof(identity.key, "router", hello.nonce + self._nonce, *claims)
        if not hmac.compare_digest(proof, message.proof):
            return Refusal(0, UNAUTHORISED, "the router does not hold the cluster key")
        mismatch = _mismatch(identity, message.digest, message.dtype)
        if mismatch is not None:
            return Refusal(0, WRONG_MODEL, mismatch)
        self.is_open = True
        return Welcome(identity.name)


def _proof(key: bytes, role: str, nonces: bytes, *claims: str) -> bytes:
    # As a literal, so that no two different lists of claims read the same.
    text = ascii(("mixray", PROTOCOL_VERSION, role, *claims))
    return hmac.digest(key, nonces + text.encode(), "sha256")


def _wrong_version(version: int) -> str:
    return f"protocol version: got {version}, want {PROTOCOL_VERSION}"


def _mismatch(identity: Identity, digest: str, dtype: str) -> str | None:
    if digest != identity.digest:
        return f"checkpoint: got {digest[:16]!r}, want {identity.digest[:16]!r}"
    if dtype != identity.dtype:
        return f"dtype: got {dtype}, want {identity.dtype}"
    return None
