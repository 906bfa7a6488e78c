"""The codec of tokens: what it writes it reads, and nothing else."""

import tracemalloc
import zlib
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.engine.request import FinishReason, TokenEvent
from cluster.token_frames import (
    MAX_FRAME_BYTES,
    MAX_FRAME_EVENTS,
    PREFIX,
    TokenBatch,
    body_bytes,
    decode,
    encode,
)
from model.sampling_params import MAX_LOGPROBS
from routing.errors import FrameError

whole_numbers = st.integers(0, 2**31 - 1)
logprobs = st.floats(max_value=0.0, allow_nan=False)
told = st.tuples(
    st.none() | logprobs,
    st.lists(st.tuples(whole_numbers, logprobs), max_size=MAX_LOGPROBS).map(tuple),
)
untold = st.just((None, ()))


@st.composite
def batches(draw: st.DrawFn) -> TokenBatch:
    """Tokens of one request, with log-probabilities or without; the last may have a reason."""
    ids = draw(st.lists(whole_numbers, min_size=1, max_size=5))
    more = draw(st.sampled_from([told, untold]))
    events = [TokenEvent(token_id, *draw(more)) for token_id in ids]
    reason: FinishReason | None = draw(st.sampled_from([None, "stop", "length"]))
    events[-1] = replace(events[-1], finish_reason=reason)
    return TokenBatch(draw(st.text("0123456789abcdef-.")), draw(whole_numbers), tuple(events))


frames = st.lists(batches(), max_size=4)
PLAIN = TokenBatch("r.0", 3, (TokenEvent(7), TokenEvent(8, finish_reason="stop")))


def read(frame: bytes) -> list[TokenBatch]:
    """Decode as a mailbox does: the prefix first, then as much as it says."""
    prefix, body = frame[: PREFIX.size], frame[PREFIX.size :]
    if len(prefix) < PREFIX.size or len(body) != body_bytes(prefix):
        raise FrameError("too short or too long")
    return decode(prefix, body)


def framed(content: Any) -> bytes:
    """A frame whose body says whatever it likes, with a checksum that is right."""
    body: bytes = msgpack.packb(content)
    return PREFIX.pack(len(body), zlib.crc32(body)) + body


@given(frames)
def test_decoding_gives_back_what_was_encoded(sent: list[TokenBatch]) -> None:
    assert read(encode(sent)) == sent


@given(frames, st.data())
def test_a_frame_cut_short_is_refused(sent: list[TokenBatch], data: st.DataObject) -> None:
    frame = encode(sent)
    cut = data.draw(st.integers(0, len(frame) - 1))

    with pytest.raises(FrameError):
        read(frame[:cut])
    with pytest.raises(FrameError):
        decode(frame[: PREFIX.size], frame[PREFIX.size : -1])


@given(frames, st.data())
def test_a_frame_with_one_byte_changed_is_refused(
    sent: list[TokenBatch], data: st.DataObject
) -> None:
    frame = bytearray(encode(sent))
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place] ^= data.draw(st.integers(1, 255))

    with pytest.raises(FrameError):
        read(bytes(frame))


@given(st.binary(max_size=64))
def test_any_bytes_are_a_frame_or_refused(body: bytes) -> None:
    prefix = PREFIX.pack(len(body), zlib.crc32(body))

    try:
        decode(prefix, body)
    except FrameError:
        pass


@pytest.mark.parametrize(
    "content",
    [
        7,
        {"r.0": [0, [1]]},
        [7],
        [["r.0", 0, [1], None]],
        [["r.0", 0, [1], None, None, None]],
        [[7, 0, [1], None, None]],
        [["r" * 129, 0, [1], None, None]],
        [["r.0", -1, [1], None, None]],
        [["r.0", True, [1], None, None]],
        [["r.0", 2**31, [1], None, None]],
        [["r.0", 0, [], None, None]],
        [["r.0", 0, 1, None, None]],
        [["r.0", 0, [1.0], None, None]],
        [["r.0", 0, [-1], None, None]],
        [["r.0", 0, [1], None, "tired"]],
        [["r.0", 0, [1], None, ["stop"]]],
        [["r.0", 0, [1], [], None]],
        [["r.0", 0, [1], [[-1.0]], None]],
        [["r.0", 0, [1], [[-1, []]], None]],
        [["r.0", 0, [1], [[-1.0, [[1]]]], None]],
        [["r.0", 0, [1], [[-1.0, [["a", -1.0]]]], None]],
        [["r.0", 0, [1], [[-1.0, [[1, None]]]], None]],
        [["r.0", 0, [1], [[-1.0, [[1, -1.0]] * (MAX_LOGPROBS + 1)]], None]],
        [["r.0", 0, [1] * (MAX_FRAME_EVENTS + 1), None, None]],
        [[b"r.0", 0, [1], None, None]],
        [["r.0", 0, [1], None, msgpack.ExtType(4, b"")]],
    ],
    ids=repr,
)
def test_a_frame_that_says_something_else_is_refused(content: Any) -> None:
    with pytest.raises(FrameError):
        read(framed(content))


def test_the_fullest_frame_fits_and_is_read() -> None:
    event = TokenEvent(2**31 - 1, -1.5, ((2**31 - 1, -2.5),) * MAX_LOGPROBS)
    sent = [TokenBatch(f"{index:0128}", 2**31 - 1, (event,)) for index in range(MAX_FRAME_EVENTS)]

    assert read(encode(sent)) == sent


def test_a_length_beyond_all_frames_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(FrameError, match="at most"):
        body_bytes(PREFIX.pack(MAX_FRAME_BYTES + 1, 0))


def test_a_body_that_claims_huge_lists_takes_little_memory() -> None:
    body = b"\xdd\xff\xff\xff\xff" * 1_000
    prefix = PREFIX.pack(len(body), zlib.crc32(body))

    tracemalloc.start()
    with pytest.raises(FrameError):
        decode(prefix, body)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 2**20


def test_a_plain_token_costs_few_bytes() -> None:
    events = tuple(TokenEvent(token_id) for token_id in range(100))

    assert len(encode([TokenBatch("r.0", 0, events)])) < 150
    assert read(encode([PLAIN])) == [PLAIN]
