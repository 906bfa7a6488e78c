"""Which requests run, in which order, and how a step is parted among them."""

import pytest

from cluster.config import EngineConfig
from cluster.engine.pace import MAX_SLOWDOWN, Pace
from cluster.engine.scheduler import Scheduler
from cluster.errors import EngineBusy, RequestTooLarge
from tests.cluster.engine.scheduling import (
    compute,
    names,
    planned,
    request,
    run,
    run_to_the_end,
    schedule,
    scheduler,
)


def test_requests_are_admitted_in_the_order_they_came() -> None:
    queue = scheduler(max_running=2)
    for name in ("a", "b", "c"):
        queue.add(request(name))

    step = schedule(queue)

    assert planned(step) == [("a", 4), ("b", 4)]
    assert queue.num_waiting == 1


def test_requests_of_lower_priority_number_run_first() -> None:
    queue = scheduler(max_running=1)
    queue.add(request("running"))
    for name, priority in [("late", 5), ("plain", 0), ("urgent", -1), ("plain too", 0)]:
        queue.add(request(name, priority=priority))

    assert run_to_the_end(queue) == ["running", "urgent", "plain", "plain too", "late"]


def test_an_urgent_prompt_is_computed_before_one_that_runs_already() -> None:
    queue = scheduler(step_tokens=10)
    queue.add(request("plain", num_prompt=30))
    run(queue, 1, step_tokens=10)
    queue.add(request("urgent", num_prompt=30, priority=-1))

    step = schedule(queue, step_tokens=10)

    assert planned(step) == [("urgent", 5), ("plain", 5)]


def test_a_large_request_at_the_head_is_not_overtaken() -> None:
    queue = scheduler(num_blocks=5)
    queue.add(request("running", num_prompt=8))
    queue.add(request("large", num_prompt=16))
    queue.add(request("small", num_prompt=1, max_tokens=1))

    step = schedule(queue)

    assert planned(step) == [("running", 8)]
    assert run_to_the_end(queue)[-2:] == ["small", "large"]


def test_a_prompt_starts_only_when_the_blocks_last_for_all_prompts_that_run() -> None:
    queue = scheduler(num_blocks=5, step_tokens=4)
    queue.add(request("first", num_prompt=12))
    queue.add(request("second", num_prompt=12))

    steps = run(queue, 2, step_tokens=4)

    assert steps == [[("first", 4)], [("first", 4)]]
    assert queue.num_waiting == 1


def test_decodes_come_before_prompt_chunks() -> None:
    queue = scheduler(step_tokens=10)
    queue.add(request("long", num_prompt=16))
    queue.add(request("short", num_prompt=2))
    run(queue, 2, step_tokens=10)
    queue.add(request("late", num_prompt=30, priority=-1))

    step = schedule(queue, step_tokens=10)

    assert planned(step) == [("long", 1), ("short", 1), ("late", 8)]
    assert (step.num_decodes, step.num_prompt_tokens) == (2, 8)


def learnt_pace() -> Pace:
    """One that lets 20 prompt tokens of a step of 100 go beside a decode."""
    pace = Pace(100)
    pace.observe(num_decodes=1, num_prompt_tokens=0, step_s=1.0)
    pace.observe(num_decodes=0, num_prompt_tokens=10, step_s=0.4)
    assert MAX_SLOWDOWN == 1.8
    return pace


def test_beside_decodes_a_long_prompt_gets_what_the_pace_allows() -> None:
    queue = scheduler()
    queue.add(request("decoding"))
    run(queue, 1)
    queue.add(request("prompt", num_prompt=90))

    step = queue.schedule(learnt_pace())

    assert planned(step) == [("decoding", 1), ("prompt", 20)]


def test_a_long_prompt_keeps_to_the_pace_up_to_its_end() -> None:
    queue = scheduler()
    queue.add(request("decoding", max_tokens=20))
    run(queue, 1)
    queue.add(request("prompt", num_prompt=70))
    chunks = []

    for _ in range(4):
        step = queue.schedule(learnt_pace())
        chunks.append(planned(step)[1])
        compute(queue, step)

    assert chunks == [("prompt", 20), ("prompt", 20), ("prompt", 20), ("prompt", 10)]


def test_beside_decodes_short_prompts_go_in_whole_up_to_half_a_step() -> None:
    queue = scheduler()
    queue.add(request("decoding"))
    run(queue, 1)
    for name, num_prompt in (("long", 80), ("a", 25), ("b", 20), ("c", 15)):
        queue.add(request(name, num_prompt=num_prompt))

    step = queue.schedule(learnt_pace())

    assert planned(step) == [("decoding", 1), ("long", 10), ("b", 20), ("c", 15)]


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    queue = scheduler(step_tokens=6)
    queue.add(request("a", num_prompt=14, max_tokens=1))

    steps = []
    while (step := schedule(queue, step_tokens=6)).chunks:
        steps.append((planned(step), step.chunks[0].is_last))
        compute(queue, step)

    assert steps == [([("a", 6)], False), ([("a", 6)], False), ([("a", 2)], True)]


def test_a_short_prompt_is_not_held_up_by_a_long_one_before_it() -> None:
    queue = scheduler(step_tokens=10)
    queue.add(request("long", num_prompt=80))
    queue.add(request("short", num_prompt=4, max_tokens=2))

    steps = run(queue, 2, step_tokens=10)

    assert steps == [[("long", 6), ("short", 4)], [("short", 1), ("long", 9)]]


def test_a_long_prompt_gets_half_of_the_budget_whoever_comes_after_it() -> None:
    queue = scheduler(step_tokens=10)
    queue.add(request("long", num_prompt=20))
    for name in ("b", "c", "d"):
        queue.add(request(name, num_prompt=9))

    step = schedule(queue, step_tokens=10)

    assert planned(step)[0] == ("long", 5)


def test_chunks_hold_the_ids_that_follow_those_computed() -> None:
    queue = scheduler(step_tokens=3)
    queue.add(request("a", num_prompt=5, output_ids=(70,)))

    first = schedule(queue, step_tokens=3)
    first_ids = first.chunks[0].token_ids
    compute(queue, first)

    assert first_ids == [1, 2, 3]
    assert schedule(queue, step_tokens=3).chunks[0].token_ids == [4, 5, 70]


def test_max_running_bounds_the_sequences_of_a_step() -> None:
    queue = scheduler(max_running=3)
    for number in range(5):
        queue.add(request(str(number)))

    assert len(schedule(queue).chunks) == 3


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

    assert (len(queue.running), queue.num_waiting) == (4, 1)


def test_a_request_that_can_never_fit_is_refused_even_when_idle() -> None:
    queue = scheduler(num_blocks=3)

    with pytest.raises(RequestTooLarge) as refusal:
        queue.add(request("a", num_prompt=8, max_tokens=5))

    assert (refusal.value.num_tokens, refusal.value.limit_tokens) == (13, 12)
    assert queue.num_waiting == 0


def test_the_limit_in_a_refusal_is_one_that_fits() -> None:
    config = EngineConfig(kv_tokens=11, block_tokens=4)
    queue = Scheduler(config, window_tokens=None)

    with pytest.raises(RequestTooLarge) as refusal:
        queue.add(request("a", num_prompt=12, max_tokens=1))

    queue.add(request("b", num_prompt=refusal.value.limit_tokens - 1, max_tokens=1))
    assert run_to_the_end(queue) == ["b"]


def test_a_request_that_is_too_large_is_told_so_by_a_full_queue_too() -> None:
    queue = scheduler(max_running=1, max_waiting=1, num_blocks=3)
    for name in ("running", "waiting"):
        queue.add(request(name))

    with pytest.raises(RequestTooLarge):
        queue.add(request("b", num_prompt=8, max_tokens=5))


def test_remove_forgets_a_running_and_a_waiting_sequence() -> None:
    queue = scheduler(max_running=1)
    running, waiting = queue.add(request("a")), queue.add(request("b"))
    schedule(queue)
    assert (names(queue.running), queue.num_waiting) == (["a"], 1)

    queue.remove(running)
    queue.remove(waiting)

    assert (queue.running, queue.num_waiting, queue.kv_tokens_used) == ([], 0, 0)
    assert schedule(queue).chunks == []


def test_one_that_is_removed_while_it_waits_leaves_the_others_in_order() -> None:
    queue = scheduler(max_running=1)
    queue.add(request("running"))
    first, *_ = [queue.add(request(name, priority=p)) for name, p in [("a", 0), ("b", 2), ("c", 1)]]

    queue.remove(first)

    assert run_to_the_end(queue) == ["running", "c", "b"]


def test_a_removed_sequence_makes_room_in_the_queue() -> None:
    queue = scheduler(max_running=1, max_waiting=1)
    queue.add(request("running"))
    waiting = queue.add(request("waiting"))

    queue.remove(waiting)
    queue.add(request("another"))

    assert queue.num_waiting == 1


def test_removing_twice_does_no_harm() -> None:
    queue = scheduler()
    sequence = queue.add(request("a"))
    schedule(queue)

    queue.remove(sequence)
    queue.remove(sequence)

    assert (queue.running, queue.num_waiting, queue.kv_tokens_used) == ([], 0, 0)


def test_tokens_of_an_earlier_router_count_towards_max_tokens() -> None:
    queue = scheduler()
    sequence = queue.add(request("a", max_tokens=3, output_ids=(9, 9)))

    finished = compute(queue, schedule(queue))

    assert finished == [sequence]
    assert sequence.num_generated == 3


def test_a_stop_id_ends_a_sequence_and_wins_over_length() -> None:
    sequence = scheduler().add(request("a", max_tokens=1))

    assert sequence.append(0) == "stop"
