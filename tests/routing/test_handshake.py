"""The handshake: the right key opens a link, whatever else happens does not."""

from dataclasses import replace
from typing import Any

import pytest

from routing.errors import HandshakeError
from routing.handshake import HostHandshake, Identity, RouterHandshake
from routing.messages import (
    PROTOCOL_VERSION,
    UNAUTHORISED,
    WRONG_MODEL,
    WRONG_VERSION,
    Challenge,
    ComputeReply,
    ComputeRequest,
    Hello,
    Message,
    Proof,
    Refusal,
    Welcome,
)
from tests.routing.hosts import identity

REQUEST = ComputeRequest(1, 0, "float32", 4, ((0, 1),), 1_000)


def challenge_of(host: HostHandshake, router: RouterHandshake) -> Challenge:
    """The host's answer to the router's hello."""
    challenge = host.receive(router.hello())
    assert isinstance(challenge, Challenge)
    return challenge


def proof_of(host: HostHandshake, router: RouterHandshake) -> Proof:
    """The router's answer to the host's challenge."""
    proof = router.receive(challenge_of(host, router))
    assert isinstance(proof, Proof)
    return proof


def test_the_same_key_opens_the_link_on_both_sides() -> None:
    host, router = HostHandshake(identity("host")), RouterHandshake(identity("router"))

    welcome = host.receive(proof_of(host, router))

    assert welcome == Welcome("host")
    assert router.receive(welcome) is None
    assert host.is_open


def test_a_router_refuses_a_host_without_the_key() -> None:
    host = HostHandshake(identity("host", key=b"another"))
    router = RouterHandshake(identity("router"))

    with pytest.raises(HandshakeError, match="host does not hold the cluster key"):
        router.receive(challenge_of(host, router))


def test_a_host_refuses_a_router_without_the_key() -> None:
    host, router = HostHandshake(identity("host")), RouterHandshake(identity("router"))
    proof = replace(proof_of(host, router), proof=bytes(32))

    refusal = host.receive(proof)

    assert isinstance(refusal, Refusal)
    assert refusal.code == UNAUTHORISED
    assert not host.is_open


def test_a_host_that_skips_its_proof_is_not_trusted() -> None:
    router = RouterHandshake(identity("router"))
    router.hello()

    with pytest.raises(HandshakeError, match="Welcome out of turn"):
        router.receive(Welcome("impostor"))


def test_a_proof_of_another_link_is_refused() -> None:
    recorded_host, router = HostHandshake(identity("host")), RouterHandshake(identity("router"))
    recorded = proof_of(recorded_host, router)
    host = HostHandshake(identity("host"))
    host.receive(router.hello())

    refusal = host.receive(recorded)

    assert isinstance(refusal, Refusal)
    assert refusal.code == UNAUTHORISED


def test_a_challenge_of_another_link_is_refused() -> None:
    host, first_router = HostHandshake(identity("host")), RouterHandshake(identity("router"))
    recorded = challenge_of(host, first_router)
    router = RouterHandshake(identity("router"))
    router.hello()

    with pytest.raises(HandshakeError, match="does not hold the cluster key"):
        router.receive(recorded)


def test_a_host_cannot_be_opened_with_its_own_proof_reflected() -> None:
    host, router = HostHandshake(identity("host")), RouterHandshake(identity("router"))
    challenge = challenge_of(host, router)

    answer = host.receive(Proof("router", challenge.digest, challenge.dtype, challenge.proof))

    assert isinstance(answer, Refusal)


@pytest.mark.parametrize("field", ["digest", "dtype", "router_id"])
def test_a_proof_covers_what_the_router_claims(field: str) -> None:
    host, router = HostHandshake(identity("host")), RouterHandshake(identity("router"))
    change: dict[str, Any] = {field: "float16"}
    proof = replace(proof_of(host, router), **change)

    refusal = host.receive(proof)

    assert isinstance(refusal, Refusal)
    assert refusal.code == UNAUTHORISED


@pytest.mark.parametrize("change", [{"digest": "x"}, {"dtype": "float16"}])
def test_a_proof_covers_what_the_host_claims(change: dict[str, Any]) -> None:
    host, router = HostHandshake(identity("host")), RouterHandshake(identity("router"))
    challenge = replace(challenge_of(host, router), **change)

    with pytest.raises(HandshakeError, match="does not hold the cluster key"):
        router.receive(challenge)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (identity(digest="another"), "checkpoint: got 'another', want 'digest'"),
        (identity(dtype="bfloat16"), "dtype: got bfloat16, want float32"),
    ],
)
def test_a_host_that_serves_something_else_is_refused_by_both_values(
    other: Identity, reason: str
) -> None:
    host, router = HostHandshake(other), RouterHandshake(identity())

    with pytest.raises(HandshakeError, match=reason):
        router.receive(challenge_of(host, router))


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1, 255])
def test_a_host_of_another_version_is_refused_by_both_values(version: int) -> None:
    host, router = HostHandshake(identity()), RouterHandshake(identity())
    challenge = replace(challenge_of(host, router), version=version)

    with pytest.raises(HandshakeError, match=f"got {version}, want {PROTOCOL_VERSION}"):
        router.receive(challenge)


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1, 255])
def test_a_router_of_another_version_is_refused_by_both_values(version: int) -> None:
    refusal = HostHandshake(identity()).receive(Hello(version, bytes(32)))

    detail = f"protocol version: got {version}, want {PROTOCOL_VERSION}"
    assert refusal == Refusal(0, WRONG_VERSION, detail)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (identity(digest="another"), "checkpoint: got 'another', want 'digest'"),
        (identity(dtype="float16"), "dtype: got float16, want float32"),
    ],
)
def test_a_router_that_expects_something_else_is_refused_by_both_values(
    other: Identity, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Our routers hang up first. One that does not is played by a proof for a host of its kind,
    # good for this host too because here all nonces are alike.
    monkeypatch.setattr("routing.handshake.secrets.token_bytes", bytes)
    host, router = HostHandshake(identity()), RouterHandshake(other)
    proof = proof_of(HostHandshake(other), router)
    host.receive(router.hello())

    refusal = host.receive(proof)

    assert refusal == Refusal(0, WRONG_MODEL, reason)


@pytest.mark.parametrize(
    "message",
    [
        Welcome("host"),
        REQUEST,
        ComputeReply(1, "float32", 4, 1),
        Proof("router", "digest", "float32", bytes(32)),
        Refusal(0, "bad_request", "no"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_host_refuses_whatever_comes_before_a_hello(message: Message) -> None:
    host = HostHandshake(identity())

    refusal = host.receive(message)

    assert refusal == Refusal(0, UNAUTHORISED, f"{type(message).__name__} out of turn")
    assert not host.is_open


def test_a_host_refuses_a_second_hello() -> None:
    host, router = HostHandshake(identity()), RouterHandshake(identity())
    host.receive(router.hello())

    assert isinstance(host.receive(router.hello()), Refusal)


@pytest.mark.parametrize(
    "message", [REQUEST, Hello(1, bytes(32))], ids=lambda message: type(message).__name__
)
def test_a_router_refuses_what_a_host_never_says(message: Message) -> None:
    router = RouterHandshake(identity())

    with pytest.raises(HandshakeError, match="out of turn"):
        router.receive(message)


def test_a_refusal_of_the_host_reaches_the_caller_by_code_and_reason() -> None:
    router = RouterHandshake(identity())

    with pytest.raises(HandshakeError, match="unauthorised.*no such key"):
        router.receive(Refusal(0, UNAUTHORISED, "no such key"))


def test_nonces_are_fresh() -> None:
    nonces = {RouterHandshake(identity()).hello().nonce for _ in range(100)}

    assert len(nonces) == 100
