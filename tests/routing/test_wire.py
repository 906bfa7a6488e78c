"""The codec: what it writes it reads, and nothing else."""

import os
import pickle
import tracemalloc
import zlib
from collections.abc import Mapping
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from routing.wire import MAX_PAYLOAD_BYTES, PREFIX, FrameReader, encode, row_bytes
from tests.faults import read_frames

KIND_OF_REQUEST = 5
KIND_OF_REPLY = 6
REQUEST = ComputeRequest(7, 2, "float32", 3, ((0, 1), (5, 2)), 5_000)
REQUEST_HEADER: Mapping[str, Any] = {
    "seq": 7,
    "layer": 2,
    "dtype": "float32",
    "dim": 3,
    "rows": [[0, 1], [5, 2]],
    "deadline_ms": 5_000,
}

names = st.text(max_size=60)
bytes_32 = st.binary(min_size=32, max_size=32)
dtypes = st.sampled_from(["float32", "bfloat16", "float16"])
seqs = st.integers(0, 2**63 - 1)
versions = st.integers(0, 255)
row_counts = st.lists(
    st.tuples(st.integers(0, 1_023), st.integers(1, 40)),
    min_size=1,
    max_size=8,
    unique_by=lambda pair: pair[0],
).map(tuple)
requests = st.builds(
    ComputeRequest,
    seqs,
    st.integers(0, 4_095),
    dtypes,
    st.integers(1, 40),
    row_counts,
    st.integers(0, 86_400_000),
)
replies = st.builds(ComputeReply, seqs, dtypes, st.integers(1, 40), st.integers(1, 40))
messages = st.one_of(
    st.builds(Hello, versions, bytes_32),
    st.builds(Challenge, versions, bytes_32, names, dtypes, bytes_32),
    st.builds(Proof, names, names, dtypes, bytes_32),
    st.builds(Welcome, names),
    st.builds(Refusal, seqs, names, names),
    requests,
    replies,
)


def payload_of(message: Message) -> bytes:
    """Random bytes, as many as the message needs."""
    if isinstance(message, ComputeRequest):
        return os.urandom(sum(num_rows for _, num_rows in message.rows) * row_bytes(message))
    if isinstance(message, ComputeReply):
        return os.urandom(message.num_rows * row_bytes(message))
    return b""


def frame_bytes(message: Message, payload: bytes | None = None) -> bytes:
    """A good frame."""
    payload = payload_of(message) if payload is None else payload
    return b"".join(encode(message, memoryview(payload)))


def forged(kind: int, header: bytes, payload: bytes = b"") -> bytes:
    """A frame with a good prefix and checksum around whatever header."""
    prefix = PREFIX.pack(b"MXRY", PROTOCOL_VERSION, kind, len(header), len(payload), 0)[:-4]
    checksum = zlib.crc32(prefix + payload + header)
    return prefix + checksum.to_bytes(4, "big") + payload + header


def forged_request(payload: bytes = bytes(36), **changes: Any) -> bytes:
    """A request with some fields changed."""
    return forged(KIND_OF_REQUEST, msgpack.packb({**REQUEST_HEADER, **changes}), payload)


def pack_pairs(*pairs: tuple[Any, Any]) -> bytes:
    """A msgpack map of up to 15 pairs, keys repeated as they come."""
    packed = b"".join(msgpack.packb(item) for pair in pairs for item in pair)
    return bytes([0x80 + len(pairs)]) + packed


@given(st.lists(messages, min_size=1, max_size=3), st.integers(1, 200))
def test_decoding_gives_what_was_encoded_however_the_bytes_are_cut(
    sent: list[Message], size: int
) -> None:
    payloads = [payload_of(message) for message in sent]
    data = b"".join(map(frame_bytes, sent, payloads))
    reader = FrameReader()

    frames = []
    for first in range(0, len(data), size):
        frames += read_frames(reader, data[first : first + size])

    assert [frame.message for frame in frames] == sent
    assert [bytes(frame.payload) for frame in frames] == payloads
    assert reader.is_idle


@given(messages, st.data())
def test_a_truncated_frame_is_waited_for(message: Message, data: st.DataObject) -> None:
    frame = frame_bytes(message)
    reader = FrameReader()

    frames = read_frames(reader, frame[: data.draw(st.integers(1, len(frame) - 1))])

    assert frames == []
    assert not reader.is_idle


def test_every_truncation_of_a_frame_is_waited_for() -> None:
    frame = frame_bytes(REQUEST)

    frames = [read_frames(FrameReader(), frame[:size]) for size in range(len(frame))]

    assert frames == [[]] * len(frame)


def is_read(data: bytes) -> bool:
    """Whether the bytes give a frame; they may also be refused or not suffice."""
    try:
        return bool(read_frames(FrameReader(), data))
    except FrameError:
        return False


@pytest.mark.parametrize(
    "message",
    [
        REQUEST,
        ComputeReply(7, "bfloat16", 2, 3),
        Hello(PROTOCOL_VERSION, bytes(32)),
        Challenge(PROTOCOL_VERSION, bytes(32), "digest", "float32", bytes(32)),
        Proof("router", "digest", "float32", bytes(32)),
        Welcome("host"),
        Refusal(7, "not_owner", "expert 3 is not held here"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_no_frame_survives_the_flip_of_a_bit(message: Message) -> None:
    frame = frame_bytes(message)

    survivors = []
    for bit in range(8 * len(frame)):
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        survivors += [bit] if is_read(bytes(flipped)) else []

    assert survivors == []


@given(messages, st.data())
def test_no_frame_survives_a_flip_among_its_followers(
    message: Message, data: st.DataObject
) -> None:
    frame = bytearray(frame_bytes(message))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8

    assert not is_read(bytes(frame))


@given(st.binary(max_size=300))
def test_random_bytes_are_no_frame(data: bytes) -> None:
    assert not is_read(data)


@given(st.sampled_from(range(1, 8)), st.binary(max_size=200), st.binary(max_size=50))
def test_a_random_header_with_a_good_checksum_raises_nothing_but_frame_error(
    kind: int, header: bytes, payload: bytes
) -> None:
    is_read(forged(kind, header, payload))


header_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=10)
    | st.binary(max_size=40),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=4), children, max_size=3)
    ),
    max_leaves=8,
)


@given(st.sampled_from(sorted(REQUEST_HEADER)), header_values)
def test_a_field_with_any_value_raises_nothing_but_frame_error(field: str, value: Any) -> None:
    is_read(forged_request(**{field: value}))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: host\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
        b"\x80\x04\x95" + pickle.dumps({"rows": [1, 2, 3]}),
        b"YRXM" + frame_bytes(REQUEST)[4:],
    ],
    ids=["http", "tls", "pickle", "magic"],
)
def test_another_protocol_is_refused_by_its_first_bytes(data: bytes) -> None:
    with pytest.raises(FrameError, match="not a peer of this protocol"):
        read_frames(FrameReader(), data)


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1, 255])
def test_another_version_is_refused_by_both_numbers(version: int) -> None:
    frame = bytearray(frame_bytes(REQUEST))
    frame[4] = version

    with pytest.raises(FrameError, match=f"got {version}, want {PROTOCOL_VERSION}"):
        read_frames(FrameReader(), bytes(frame))


@pytest.mark.parametrize("kind", [0, 8, 99, 255])
def test_a_kind_that_does_not_exist_is_refused(kind: int) -> None:
    with pytest.raises(FrameError, match=f"kind {kind} does not exist"):
        read_frames(FrameReader(), forged(kind, b"\x80"))


@pytest.mark.parametrize("num_bytes", [MAX_PAYLOAD_BYTES + 1, 2**31, 2**32 - 1])
def test_a_huge_payload_is_refused_from_its_length_alone(num_bytes: int) -> None:
    prefix = PREFIX.pack(b"MXRY", PROTOCOL_VERSION, KIND_OF_REQUEST, 65_535, num_bytes, 0)
    reader = FrameReader()
    tracemalloc.start()

    with pytest.raises(FrameError, match="want at most"):
        read_frames(reader, prefix)

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000


def test_a_reader_takes_no_payload_over_the_limit_it_was_given() -> None:
    reader = FrameReader(max_payload_bytes=35)

    with pytest.raises(FrameError, match="got 36 bytes, want at most 35"):
        read_frames(reader, frame_bytes(REQUEST))


def test_an_empty_header_is_refused() -> None:
    with pytest.raises(FrameError, match="empty"):
        read_frames(FrameReader(), forged(KIND_OF_REQUEST, b""))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"\xdd\xff\xff\xff\xff", "max_array_len"),
        (b"\xdf\xff\xff\xff\xff", "max_map_len"),
        (b"\xdb\xff\xff\xff\xff", "incomplete"),
        (b"\xc6\xff\xff\xff\xff", "incomplete"),
        (b"\xda\x01\x01" + b"x" * 257, "max_str_len"),
        (b"\xc5\x01\x01" + b"x" * 257, "max_bin_len"),
        (b"\xc9\xff\xff\xff\xff\x05", "max_ext_len"),
        (b"\x91" * 1_025 + b"\xc0", "header"),
        (b"\x91" * 1_000 + b"\xc0", "want a map"),
        (b"\xdd\x00\x00\x04\x01" + b"\x90" * 1_025, "max_array_len"),
        (b"\x81\xa3seq" + b"\x91" * 1_000 + b"\xc0", "got fields"),
        (pack_pairs(("seq", 1), ("seq", 2)), "twice"),
        (pack_pairs((1, 2)), "map key"),
        (pack_pairs((None, 2)), "map key"),
        (pack_pairs((b"seq", 1), ("seq", 2)), "got fields"),
        (b"\x81\xa3seq\xc7\x00\x05", "extension"),
        (b"\x81\xa3seq\xd6\xff\x00\x00\x00\x01", "max_ext_len"),
        (b"\xc1", "header"),
        (b"\x80\x80", "extra data"),
        (b"\x81\xa2\xff\xfe\x01", "utf-8"),
        (b"\x81\xa3seq", "incomplete"),
        (b"\x07", "want a map"),
        (b"\xc0", "want a map"),
        (b"\x80", "got fields"),
        (pickle.dumps(REQUEST_HEADER), "header"),
    ],
)
def test_a_hostile_header_is_refused(header: bytes, reason: str) -> None:
    with pytest.raises(FrameError, match=reason):
        read_frames(FrameReader(), forged(KIND_OF_REQUEST, header))


@pytest.mark.parametrize("field", sorted(REQUEST_HEADER))
@pytest.mark.parametrize("depth", [4, 500, 1_000])
def test_a_deeply_nested_field_is_refused(field: str, depth: int) -> None:
    others = [(name, value) for name, value in REQUEST_HEADER.items() if name != field]
    header = bytearray(pack_pairs(*others, (field, None)))
    header[-1:] = b"\x91" * depth + b"\xc0"

    with pytest.raises(FrameError, match=field):
        read_frames(FrameReader(), forged(KIND_OF_REQUEST, bytes(header), bytes(36)))


def test_a_header_full_of_lists_does_not_take_much_memory() -> None:
    header = b"\x81\xa4rows\xdc\x03\xff" + (b"\xdc\x00\x3e" + b"\x90" * 62) * 1_023
    tracemalloc.start()

    with pytest.raises(FrameError, match="header|got fields"):
        read_frames(FrameReader(), forged(KIND_OF_REQUEST, header[:65_535]))

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 10_000_000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "O"),
        ("dtype", "V8"),
        ("dtype", "<U9"),
        ("dtype", "float64"),
        ("dtype", "object"),
        ("dtype", 4),
        ("dim", 0),
        ("dim", -3),
        ("dim", 65_537),
        ("dim", 2**62),
        ("dim", 3.0),
        ("dim", True),
        ("dim", [3]),
        ("seq", -1),
        ("seq", 2**63),
        ("seq", False),
        ("seq", None),
        ("layer", -1),
        ("layer", 4_096),
        ("layer", "2"),
        ("deadline_ms", -1),
        ("deadline_ms", 2**62),
        ("deadline_ms", 0.5),
        ("rows", []),
        ("rows", {}),
        ("rows", 3),
        ("rows", [3]),
        ("rows", [[0]]),
        ("rows", [[0, 3, 1]]),
        ("rows", [[0, 0], [1, 3]]),
        ("rows", [[0, -1], [1, 4]]),
        ("rows", [[0, 2**62]]),
        ("rows", [[-1, 3]]),
        ("rows", [[1_024, 3]]),
        ("rows", [[0, 1], [0, 2]]),
        ("rows", [[0, True], [1, 2]]),
        ("rows", [["0", 3]]),
        ("rows", [[0, 1]] * 33),
    ],
)
def test_a_field_out_of_its_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(FrameError, match=field):
        read_frames(FrameReader(), forged_request(**{field: value}))


@pytest.mark.parametrize("num_bytes", [0, 35, 37, 72])
def test_a_payload_that_does_not_match_its_rows_is_refused(num_bytes: int) -> None:
    with pytest.raises(FrameError, match=f"got {num_bytes} bytes, want 36"):
        read_frames(FrameReader(), forged_request(payload=bytes(num_bytes)))


def test_a_message_without_rows_has_no_payload() -> None:
    header = msgpack.packb({"version": 1, "nonce": bytes(32)})

    with pytest.raises(FrameError, match="got 4 bytes, want 0"):
        read_frames(FrameReader(), forged(1, header, bytes(4)))


def test_a_missing_and_an_unknown_field_are_refused() -> None:
    without_layer = {name: value for name, value in REQUEST_HEADER.items() if name != "layer"}

    for header in (without_layer, {**REQUEST_HEADER, "reload": 1}):
        with pytest.raises(FrameError, match="ComputeRequest: got fields"):
            read_frames(FrameReader(), forged(KIND_OF_REQUEST, msgpack.packb(header), bytes(36)))


def test_a_request_with_as_many_experts_and_rows_as_there_can_be_is_read() -> None:
    rows = tuple((expert_id, 1) for expert_id in range(1_023)) + ((1_023, 2**20 - 1_023),)
    request = ComputeRequest(2**63 - 1, 4_095, "bfloat16", 1, rows, 0)

    [frame] = read_frames(FrameReader(), frame_bytes(request, bytes(2 * 2**20)))

    assert frame.message == request


def test_a_refusal_names_a_hostile_value_in_few_printable_characters() -> None:
    with pytest.raises(FrameError) as caught:
        read_frames(FrameReader(), forged_request(dtype="\n\x1b[31m\u202e" + "x" * 200))

    assert len(str(caught.value)) < 200
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


def test_a_payload_is_a_writable_view_that_starts_its_buffer() -> None:
    [frame] = read_frames(FrameReader(), frame_bytes(REQUEST))

    assert not frame.payload.readonly
    assert isinstance(frame.payload.obj, bytearray)
    assert bytes(frame.payload) == bytes(frame.payload.obj[: len(frame.payload)])


def resident_bytes() -> int:
    """Memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_hundred_thousand_bad_keys_leave_nothing_behind() -> None:
    frame = forged(KIND_OF_REQUEST, pack_pairs(("k" * 200, 1), (b"b" * 200, [2]), (3, 4)))
    for _ in range(1_000):
        is_read(frame)
    before_bytes = resident_bytes()

    for _ in range(100_000):
        is_read(frame)

    assert resident_bytes() - before_bytes < 10_000_000
