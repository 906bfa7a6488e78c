"""A connection from a router to the mailbox of an ingress: how it opens, and what goes over it.

Each end sends a fresh random number and proves by an HMAC-SHA-256 over both, and its role, that it
holds the mailbox's key; the key itself never goes over the connection. After that, frames of tokens
go one way:

    router: greeting, number | mailbox: number, proof | router: proof, frame, frame, ...
"""

import asyncio
import hmac
import secrets
import socket
from dataclasses import dataclass, field

from cluster.token_frames import PREFIX, TokenBatch, body_bytes, decode
from routing.errors import HandshakeError, LinkClosed
from routing.socket_link import parse_address, tune

GREETING = b"mixray tokens 1\n"
NONCE_BYTES = 32
PROOF_BYTES = 32

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class MailboxAddress:
    """Where a mailbox is, and the key to it; travels with each request, over Ray alone."""

    node_id: str
    addresses: tuple[str, ...]
    key: bytes = field(repr=False)


async def connect(address: str, key: bytes) -> Streams:
    """Open a connection to a mailbox.

    Raises:
        LinkClosed: nobody listens there, or the peer hung up.
        HandshakeError: the peer does not hold the key.
    """
    streams = await _open(address)
    try:
        await _prove_router(streams, key)
    except BaseException:
        streams[1].close()
        raise
    return streams


async def accept(streams: Streams, key: bytes) -> None:
    """Let a router prove itself to a mailbox; closing the connection is up to the caller.

    Raises:
        LinkClosed: the peer hung up.
        HandshakeError: it does not hold the key.
    """
    reader, writer = streams
    hello = await _read(reader, len(GREETING) + NONCE_BYTES)
    if not hello.startswith(GREETING):
        raise HandshakeError("the peer speaks another protocol")
    nonce = secrets.token_bytes(NONCE_BYTES)
    nonces = hello[len(GREETING) :] + nonce
    writer.write(nonce + _proof(key, b"mailbox", nonces))
    if not hmac.compare_digest(await _read(reader, PROOF_BYTES), _proof(key, b"router", nonces)):
        raise HandshakeError("the router does not hold the mailbox's key")


async def read_frame(reader: asyncio.StreamReader) -> list[TokenBatch]:
    """Wait for the next frame.

    Raises:
        LinkClosed: the router hung up.
        FrameError: what came is not a frame.
    """
    prefix = await _read(reader, PREFIX.size)
    return decode(prefix, await _read(reader, body_bytes(prefix)))


async def _open(address: str) -> Streams:
    family, target = parse_address(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, target)
        tune(sock)
        if family == socket.AF_UNIX:
            return await asyncio.open_unix_connection(sock=sock)
        return await asyncio.open_connection(sock=sock)
    except OSError as error:
        sock.close()
        raise LinkClosed(f"{address}: {error}") from error
    except asyncio.CancelledError:
        sock.close()
        raise


async def _prove_router(streams: Streams, key: bytes) -> None:
    reader, writer = streams
    nonce = secrets.token_bytes(NONCE_BYTES)
    writer.write(GREETING + nonce)
    answer = await _read(reader, NONCE_BYTES + PROOF_BYTES)
    nonces = nonce + answer[:NONCE_BYTES]
    if not hmac.compare_digest(answer[NONCE_BYTES:], _proof(key, b"mailbox", nonces)):
        raise HandshakeError("the peer does not hold the mailbox's key")
    writer.write(_proof(key, b"router", nonces))


async def _read(reader: asyncio.StreamReader, num_bytes: int) -> bytes:
    try:
        return await reader.readexactly(num_bytes)
    except (OSError, asyncio.IncompleteReadError) as error:
        raise LinkClosed(f"the peer hung up: {error}") from error


def _proof(key: bytes, role: bytes, nonces: bytes) -> bytes:
    return hmac.digest(key, GREETING + role + nonces, "sha256")
