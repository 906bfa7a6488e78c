"""The scheduler's choices, without a model."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config import EngineConfig
from cluster.engine.request import GenerateRequest
from cluster.engine.scheduler import ScheduledChunk, Scheduler, Sequence
from cluster.errors import EngineBusy, RequestTooLarge
from model.sampling_params import SamplingParams

WINDOW_TOKENS = 8


def all_tokens(max_tokens: int) -> int:
    """Cache slots of a model without a window."""
    return max_tokens


def windowed(max_tokens: int) -> int:
    """Cache slots of a model with a window."""
    return min(max_tokens, WINDOW_TOKENS)


def request(
    request_id: str, num_prompt: int = 4, max_tokens: int = 4, output_ids: tuple[int, ...] = ()
) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id,
        prompt_ids=tuple(range(1, num_prompt + 1)),
        params=SamplingParams(max_tokens=max_tokens, stop_token_ids=(0,)),
        output_ids=output_ids,
    )


def scheduler(
    slots_for: Callable[[int], int] = all_tokens,
    max_running: int = 8,
    max_waiting: int = 8,
    step_tokens: int = 100,
    kv_tokens: int = 1_000,
) -> Scheduler:
    config = EngineConfig(
        max_running=max_running,
        max_waiting=max_waiting,
        step_tokens=step_tokens,
        kv_tokens=kv_tokens,
    )
    return Scheduler(config, slots_for)


def planned(chunks: list[ScheduledChunk]) -> list[tuple[str, int]]:
    """Request id and number of tokens of each chunk."""
    return [(chunk.sequence.request.request_id, chunk.num_tokens) for chunk in chunks]


def compute(scheduler: Scheduler, chunks: list[ScheduledChunk]) -> list[Sequence]:
    """Play the engine: count the chunks as computed, sample id 9; the sequences that finished."""
    sampled = [chunk.sequence for chunk in chunks if chunk.is_last]
    for chunk in chunks:
        chunk.sequence.num_computed += chunk.num_tokens
    finished = [sequence for sequence in sampled if sequence.append(9) is not None]
    for sequence in finished:
        scheduler.remove(sequence)
    return finished


def test_requests_are_admitted_in_the_order_they_came() -> None:
    queue = scheduler(max_running=2)
    for name in ("a", "b", "c"):
        queue.add(request(name))

    chunks = queue.schedule()

    assert planned(chunks) == [("a", 4), ("b", 4)]
    assert [sequence.request.request_id for sequence in queue.waiting] == ["c"]


def test_a_large_request_at_the_head_is_not_overtaken() -> None:
    queue = scheduler(kv_tokens=20)
    queue.add(request("running", num_prompt=8, max_tokens=4))
    queue.add(request("large", num_prompt=8, max_tokens=8))
    queue.add(request("small", num_prompt=1, max_tokens=1))

    chunks = queue.schedule()

    assert planned(chunks) == [("running", 8)]


def test_decodes_come_before_prompt_chunks() -> None:
    queue = scheduler(step_tokens=10)
    queue.add(request("long", num_prompt=16))
    queue.add(request("short", num_prompt=2))
    compute(queue, queue.schedule())
    compute(queue, queue.schedule())
    queue.add(request("late", num_prompt=30))

    chunks = queue.schedule()

    assert planned(chunks) == [("long", 1), ("short", 1), ("late", 8)]


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    queue = scheduler(step_tokens=6)
    queue.add(request("a", num_prompt=14, max_tokens=1))

    steps = []
    while chunks := queue.schedule():
        steps.append(planned(chunks) + [("last", int(chunks[0].is_last))])
        compute(queue, chunks)

    assert steps == [
        [("a", 6), ("last", 0)],
        [("a", 6), ("last", 0)],
        [("a", 2), ("last", 1)],
    ]


def test_chunks_hold_the_ids_that_follow_those_computed() -> None:
    queue = scheduler(step_tokens=3)
    queue.add(request("a", num_prompt=5, output_ids=(70,)))

    first = queue.schedule()
    first_ids = first[0].token_ids
    compute(queue, first)

    assert first_ids == [1, 2, 3]
    assert queue.schedule()[0].token_ids == [4, 5, 70]


def test_max_running_bounds_the_sequences_of_a_step() -> None:
    queue = scheduler(max_running=3)
    for number in range(5):
        queue.add(request(str(number)))

    chunks = queue.schedule()

    assert len(chunks) == 3


def test_slots_are_reserved_for_prompt_and_answer_together() -> None:
    queue = scheduler(kv_tokens=16)
    queue.add(request("a", num_prompt=4, max_tokens=4))
    queue.add(request("b", num_prompt=4, max_tokens=4))
    queue.add(request("c", num_prompt=1, max_tokens=1))

    queue.schedule()

    assert queue.kv_tokens_used == 16
    assert len(queue.waiting) == 1


def test_windowed_sequences_reserve_no_more_than_the_window() -> None:
    queue = scheduler(windowed, kv_tokens=2 * WINDOW_TOKENS)
    queue.add(request("a", num_prompt=100, max_tokens=100))
    queue.add(request("b", num_prompt=100, max_tokens=100))

    queue.schedule()

    assert len(queue.running) == 2
    assert queue.kv_tokens_used == 2 * WINDOW_TOKENS


def test_a_full_queue_refuses() -> None:
    queue = scheduler(max_running=1, max_waiting=2)
    for name in ("running", "a", "b"):
        queue.add(request(name))

    with pytest.raises(EngineBusy) as refusal:
        queue.add(request("c"))

    assert refusal.value.num_waiting == 2


def test_requests_that_can_run_at_once_do_not_fill_the_queue() -> None:
    queue = scheduler(max_running=4, max_waiting=1)

    for number in range(5):
        queue.add(request(str(number)))

    assert (len(queue.running), len(queue.waiting)) == (4, 1)


def test_a_request_that_can_never_fit_is_refused_even_when_idle() -> None:
    queue = scheduler(kv_tokens=10)

    with pytest.raises(RequestTooLarge) as refusal:
        queue.add(request("a", num_prompt=8, max_tokens=3))

    assert (refusal.value.num_tokens, refusal.value.limit_tokens) == (11, 10)
    assert not queue.waiting


def test_a_request_that_is_too_large_is_told_so_by_a_full_queue_too() -> None:
    queue = scheduler(max_waiting=1, kv_tokens=10)
    queue.add(request("a"))

    with pytest.raises(RequestTooLarge):
        queue.add(request("b", num_prompt=8, max_tokens=3))


def test_a_suspect_runs_alone() -> None:
    queue = scheduler()
    queue.add(request("a"))
    suspect = queue.add(request("b"))
    compute(queue, queue.schedule())
    suspect.is_suspect = True
    suspect.num_computed = 0

    chunks = queue.schedule()

    assert planned(chunks) == [("b", 5)]


def test_remove_forgets_a_running_and_a_waiting_sequence() -> None:
    queue = scheduler(max_running=1)
    running, waiting = queue.add(request("a")), queue.add(request("b"))
    queue.schedule()

    queue.remove(running)
    queue.remove(waiting)

    assert (queue.running, list(queue.waiting), queue.kv_tokens_used) == ([], [], 0)


def test_removing_twice_does_no_harm() -> None:
    queue = scheduler()
    sequence = queue.add(request("a"))
    queue.schedule()

    queue.remove(sequence)
    queue.remove(sequence)

    assert queue.running == []


def test_tokens_of_an_earlier_router_count_towards_max_tokens() -> None:
    queue = scheduler()
    sequence = queue.add(request("a", max_tokens=3, output_ids=(9, 9)))
    chunks = queue.schedule()

    finished = compute(queue, chunks)

    assert finished == [sequence]
    assert sequence.num_generated == 3


def test_a_stop_id_ends_a_sequence_and_wins_over_length() -> None:
    sequence = scheduler().add(request("a", max_tokens=1))

    assert sequence.append(0) == "stop"


sizes = st.tuples(st.integers(1, 40), st.integers(1, 12))


@settings(max_examples=150, deadline=None)
@given(
    wanted=st.lists(sizes, min_size=1, max_size=12),
    max_running=st.integers(1, 5),
    step_tokens=st.integers(1, 20),
    kv_tokens=st.integers(52, 150),
    slots_for=st.sampled_from([all_tokens, windowed]),
    arrivals=st.lists(st.integers(0, 3), min_size=12, max_size=12),
)
def test_slots_are_conserved_and_every_request_finishes_in_order_of_admission(
    wanted: list[tuple[int, int]],
    max_running: int,
    step_tokens: int,
    kv_tokens: int,
    slots_for: Callable[[int], int],
    arrivals: list[int],
) -> None:
    queue = scheduler(slots_for, max_running, len(wanted), step_tokens, kv_tokens)
    to_come = [request(str(i), *size) for i, size in enumerate(wanted)]
    admitted: list[str] = []
    finished: list[Sequence] = []

    # Every step computes a token at least, and no sequence computes one twice.
    for step in range(sum(prompt + answer for prompt, answer in wanted) + len(wanted)):
        for _ in range(arrivals[step % len(arrivals)] or int(not queue.running)):
            if to_come:
                queue.add(to_come.pop(0))
        chunks = queue.schedule()
        admitted += [
            s.request.request_id for s in queue.running if s.request.request_id not in admitted
        ]
        assert bool(chunks) == bool(queue.running)
        assert sum(chunk.num_tokens for chunk in chunks) <= step_tokens
        assert all(chunk.num_tokens > 0 for chunk in chunks)
        assert len(queue.running) <= max_running
        assert queue.kv_tokens_used == sum(s.num_slots for s in queue.running) <= kv_tokens
        finished += compute(queue, chunks)

    assert len(finished) == len(wanted)
    assert all(s.num_generated == s.request.params.max_tokens for s in finished)
    assert admitted == [str(number) for number in range(len(wanted))]
    assert queue.kv_tokens_used == 0
