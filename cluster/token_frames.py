"""Tokens on their way from a router to an ingress: frames to bytes and back, without any IO.

A frame holds the tokens of one step for one ingress, whatever request they belong to:

    body bytes u32 | checksum of the body u32 | body, a msgpack list of batches

Lengths are checked before anything is allocated, and nothing that arrives is ever unpickled.
"""

import reprlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import msgpack

from cluster.engine.request import FinishReason, TokenEvent
from model.sampling_params import MAX_LOGPROBS
from routing.errors import FrameError

PREFIX = struct.Struct("!II")
MAX_FRAME_EVENTS = 4_096
# An event with all its log-probabilities and a request id of its own takes less than 512 bytes.
MAX_FRAME_BYTES = 2**21
MAX_ID_CHARS = 128
MAX_INTEGER = 2**31 - 1
FINISH_REASONS: tuple[FinishReason, ...] = get_args(FinishReason)

# A token's log-probability and those of the most likely ones, as in TokenEvent.
Told = tuple[float | None, tuple[tuple[int, float], ...]]
NOTHING_TOLD: Told = (None, ())


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Tokens of one request that follow each other.

    Attributes:
        first: how many tokens the router gave to this request before these.
    """

    request_id: str
    first: int
    events: tuple[TokenEvent, ...]


def encode(batches: Sequence[TokenBatch]) -> bytes:
    """Make one frame of at most MAX_FRAME_EVENTS tokens."""
    body: bytes = msgpack.packb([_row(batch) for batch in batches])
    assert len(body) <= MAX_FRAME_BYTES, len(body)
    return PREFIX.pack(len(body), zlib.crc32(body)) + body


def body_bytes(prefix: bytes) -> int:
    """Length of the body that follows a prefix.

    Raises:
        FrameError: no frame is that long.
    """
    length: int = PREFIX.unpack(prefix)[0]
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"frame: got {length} bytes, want at most {MAX_FRAME_BYTES}")
    return length


def decode(prefix: bytes, body: bytes) -> list[TokenBatch]:
    """Read one frame.

    Raises:
        FrameError: it is not one that `encode` makes.
    """
    length, checksum = PREFIX.unpack(prefix)
    if len(body) != length or zlib.crc32(body) != checksum:
        raise FrameError("checksum does not match")
    try:
        rows = msgpack.unpackb(
            body,
            max_str_len=4 * MAX_ID_CHARS,
            max_bin_len=0,
            max_array_len=MAX_FRAME_EVENTS,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, RecursionError) as error:  # msgpack's own errors are ValueErrors
        raise FrameError(f"body: {error}") from error
    return [_batch(row) for row in _list(rows, MAX_FRAME_EVENTS)]


def _row(batch: TokenBatch) -> tuple[object, ...]:
    """A batch in columns; log-probabilities, which few requests want, are left out if none came."""
    events = batch.events
    has_logprobs = any(event.logprob is not None or event.top_logprobs for event in events)
    return (
        batch.request_id,
        batch.first,
        [event.token_id for event in events],
        [(event.logprob, event.top_logprobs) for event in events] if has_logprobs else None,
        events[-1].finish_reason,
    )


def _batch(row: Any) -> TokenBatch:
    request_id, first, token_ids, logprobs, finish_reason = _list(row, 5, 5)
    if type(request_id) is not str or len(request_id) > MAX_ID_CHARS:
        raise FrameError(f"request id: got {_shown(request_id)}, want a short text")
    if finish_reason is not None and finish_reason not in FINISH_REASONS:
        raise FrameError(f"finish reason: got {_shown(finish_reason)}")
    ids = [_integer(token_id) for token_id in _list(token_ids, MAX_FRAME_EVENTS, 1)]
    told = [NOTHING_TOLD] * len(ids)
    if logprobs is not None:
        told = [_logprobs(pair) for pair in _list(logprobs, len(ids), len(ids))]
    reasons = [None] * (len(ids) - 1) + [finish_reason]
    tokens = zip(ids, told, reasons, strict=True)
    events = tuple(TokenEvent(token_id, *pair, reason) for token_id, pair, reason in tokens)
    return TokenBatch(request_id, _integer(first), events)


def _logprobs(value: Any) -> Told:
    logprob, top = _list(value, 2, 2)
    pairs = [_list(pair, 2, 2) for pair in _list(top, MAX_LOGPROBS)]
    return (
        None if logprob is None else _float(logprob),
        tuple((_integer(token_id), _float(value)) for token_id, value in pairs),
    )


def _list(value: Any, most: int, least: int = 0) -> list[Any]:
    if type(value) is not list or not least <= len(value) <= most:
        raise FrameError(f"got {_shown(value)}, want a list of {least} to {most}")
    return value


def _integer(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_INTEGER:
        raise FrameError(f"got {_shown(value)}, want a whole number from 0 to {MAX_INTEGER}")
    return value


def _float(value: Any) -> float:
    if type(value) is not float:
        raise FrameError(f"got {_shown(value)}, want a number")
    return value


def _shown(value: Any) -> str:
    return reprlib.repr(value).encode("ascii", "backslashreplace").decode()
