"""Messages to bytes and back, without any input or output.

A frame is a fixed prefix, the payload (raw tensor bytes) and the header (a msgpack map):

    magic 4s | version u8 | kind u8 | header bytes u16 | payload bytes u32 | checksum u32

The payload comes before the header so that it lies aligned at the start of its buffer. The
checksum is a CRC-32 of the prefix before it, the payload and the header. Every length is checked
before anything is allocated, and nothing that arrives is ever unpickled.
"""

import reprlib
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import msgpack

from routing.errors import FrameError
from routing.messages import (
    PROTOCOL_VERSION,
    Challenge,
    ComputeReply,
    ComputeRequest,
    Hello,
    Message,
    Proof,
    Refusal,
    Welcome,
)

MAGIC = b"MXRY"
PREFIX = struct.Struct("!4sBBHII")
MAX_PAYLOAD_BYTES = 64 * 2**20
MAX_ROWS = 2**20
MAX_EXPERTS = 1_024
MAX_TEXT_BYTES = 256

_KINDS: dict[int, type[Message]] = {
    1: Hello,
    2: Challenge,
    3: Proof,
    4: Welcome,
    5: ComputeRequest,
    6: ComputeReply,
    7: Refusal,
}
_KIND_OF = {message_type: kind for kind, message_type in _KINDS.items()}
_FIELDS = {
    message_type: tuple(field.name for field in fields(message_type)) for message_type in _KIND_OF
}


@dataclass(frozen=True, slots=True)
class Frame:
    """A message and the bytes that came with it."""

    message: Message
    payload: memoryview


def encode(message: Message, payload: memoryview | None = None) -> tuple[bytes, memoryview, bytes]:
    """Return prefix, payload and header, to be sent in this order."""
    payload = memoryview(b"") if payload is None else payload
    header = msgpack.packb({name: getattr(message, name) for name in _FIELDS[type(message)]})
    unsummed = PREFIX.pack(
        MAGIC, PROTOCOL_VERSION, _KIND_OF[type(message)], len(header), payload.nbytes, 0
    )
    checksum = _checksum(unsummed, payload, header)
    return unsummed[:-4] + checksum.to_bytes(4, "big"), payload, header


class FrameReader:
    """Assembles frames from bytes as they arrive.

    Fill `buffer()` with as many bytes as come, then tell `received(count)`. Mutable state: the
    buffer being filled, how much of it is, and the prefix once it is known.
    """

    def __init__(self, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self._max_payload_bytes = max_payload_bytes
        self._expect_prefix()

    @property
    def is_idle(self) -> bool:
        """Whether no frame has begun to arrive."""
        return self._prefix is None and self._filled == 0

    def buffer(self) -> memoryview:
        """The place for the next bytes; never empty."""
        return memoryview(self._buffer)[self._filled :]

    def received(self, count: int) -> Frame | None:
        """Count bytes written into `buffer()`; return a frame if they completed one.

        Raises:
            FrameError: the bytes are not a valid frame; the link must be closed.
        """
        self._filled += count
        if self._filled < len(self._buffer):
            return None
        if self._prefix is None:
            self._expect_body(bytes(self._buffer))
            return None
        frame = _decode_body(self._prefix, memoryview(self._buffer))
        self._expect_prefix()
        return frame

    def _expect_prefix(self) -> None:
        self._prefix: bytes | None = None
        self._buffer = bytearray(PREFIX.size)
        self._filled = 0

    def _expect_body(self, prefix: bytes) -> None:
        magic, version, kind, header_bytes, payload_bytes, _ = PREFIX.unpack(prefix)
        if magic != MAGIC:
            raise FrameError(f"got {magic!r}, want {MAGIC!r}: not a peer of this protocol")
        if version != PROTOCOL_VERSION:
            raise FrameError(f"protocol version: got {version}, want {PROTOCOL_VERSION}")
        if kind not in _KINDS:
            raise FrameError(f"message kind {kind} does not exist")
        if header_bytes == 0:
            raise FrameError("the header is empty")
        if payload_bytes > self._max_payload_bytes:
            raise FrameError(
                f"payload: got {payload_bytes} bytes, want at most {self._max_payload_bytes}"
            )
        self._prefix = prefix
        self._buffer = bytearray(payload_bytes + header_bytes)
        self._filled = 0


def _checksum(prefix: bytes, payload: memoryview, header: bytes | memoryview) -> int:
    return zlib.crc32(header, zlib.crc32(payload, zlib.crc32(prefix[:-4])))


def _decode_body(prefix: bytes, body: memoryview) -> Frame:
    _, _, kind, _, payload_bytes, checksum = PREFIX.unpack(prefix)
    payload, header = body[:payload_bytes], body[payload_bytes:]
    if _checksum(prefix, payload, header) != checksum:
        raise FrameError("checksum does not match")
    values = _unpack_header(header)
    message_type = _KINDS[kind]
    names = _FIELDS[message_type]
    if values.keys() != set(names):
        got = _shown(list(values))
        raise FrameError(f"{message_type.__name__}: got fields {got}, want {', '.join(names)}")
    message = message_type(**{name: _CHECKS[name](name, values[name]) for name in names})
    _check_payload(message, payload_bytes)
    return Frame(message, payload)


def _unpack_header(header: memoryview) -> dict[str, Any]:
    try:
        values = msgpack.unpackb(
            header,
            strict_map_key=True,
            object_pairs_hook=_unique_pairs,
            ext_hook=_refuse_extension,
            max_str_len=MAX_TEXT_BYTES,
            max_bin_len=MAX_TEXT_BYTES,
            max_array_len=MAX_EXPERTS,
            max_map_len=16,
            max_ext_len=0,
        )
    except FrameError:
        raise
    except (ValueError, RecursionError) as error:  # msgpack's own errors are ValueErrors
        raise FrameError(f"header: {error}") from error
    if not isinstance(values, dict):
        raise FrameError(f"header: got {type(values).__name__}, want a map")
    return values


def _unique_pairs(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise FrameError("header: a key occurs twice")
    return values


def _refuse_extension(code: int, data: bytes) -> None:
    raise FrameError(f"header: extension type {code} is not allowed")


def _check_payload(message: Message, payload_bytes: int) -> None:
    want = 0
    if isinstance(message, ComputeRequest):
        want = sum(num_rows for _, num_rows in message.rows) * row_bytes(message)
    elif isinstance(message, ComputeReply):
        want = message.num_rows * row_bytes(message)
    if payload_bytes != want:
        raise FrameError(f"payload: got {payload_bytes} bytes, want {want}")


DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


def row_bytes(message: ComputeRequest | ComputeReply) -> int:
    """Bytes of one row of the message's payload."""
    return message.dim * DTYPE_BYTES[message.dtype]


def _shown(value: Any) -> str:
    """Picture a value from the other side, short and in ASCII, however deep or long it is."""
    return reprlib.repr(value).encode("ascii", "backslashreplace").decode()


def _integer(low: int, high: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise FrameError(
                f"{name}: got {_shown(value)}, want a whole number from {low} to {high}"
            )
        return value

    return check


_expert_id = _integer(0, MAX_EXPERTS - 1)
_num_rows = _integer(1, MAX_ROWS)


def _text(name: str, value: Any) -> str:
    if type(value) is not str:
        raise FrameError(f"{name}: got {_shown(value)}, want text")
    return value


def _bytes_32(name: str, value: Any) -> bytes:
    if type(value) is not bytes or len(value) != 32:
        raise FrameError(f"{name}: got {_shown(value)}, want 32 bytes")
    return value


def _dtype(name: str, value: Any) -> str:
    if _text(name, value) not in DTYPE_BYTES:
        raise FrameError(f"{name}: got {_shown(value)}, want one of {', '.join(DTYPE_BYTES)}")
    return str(value)


def _rows(name: str, value: Any) -> tuple[tuple[int, int], ...]:
    if type(value) is not list or not value:
        raise FrameError(f"{name}: got {_shown(value)}, want a list of (expert, number of rows)")
    pairs = []
    for pair in value:
        if type(pair) is not list or len(pair) != 2:
            raise FrameError(f"{name}: got {_shown(pair)}, want (expert, number of rows)")
        pairs.append((_expert_id(name, pair[0]), _num_rows(name, pair[1])))
    if len({expert_id for expert_id, _ in pairs}) != len(pairs):
        raise FrameError(f"{name}: an expert occurs twice")
    return tuple(pairs)


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "version": _integer(0, 255),
    "nonce": _bytes_32,
    "proof": _bytes_32,
    "digest": _text,
    "dtype": _dtype,
    "router_id": _text,
    "host_id": _text,
    "seq": _integer(0, 2**63 - 1),
    "layer": _integer(0, 4_095),
    "dim": _integer(1, 65_536),
    "rows": _rows,
    "num_rows": _num_rows,
    "deadline_ms": _integer(0, 86_400_000),
    "code": _text,
    "detail": _text,
}
