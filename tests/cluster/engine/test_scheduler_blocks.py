"""What the scheduler does with blocks: sharing, preemption, and sequences that start over."""

import pytest

from tests.cluster.engine.scheduling import (
    BLOCK_TOKENS,
    compute,
    names,
    planned,
    request,
    run,
    run_to_the_end,
    schedule,
    scheduler,
)


def test_blocks_are_taken_as_tokens_come_and_not_before() -> None:
    queue = scheduler()
    queue.add(request("a", num_prompt=4, max_tokens=90))

    used = []
    for _ in range(6):
        run(queue, 1)
        used.append(queue.kv_tokens_used)

    assert used == [4, 8, 8, 8, 8, 12]


def test_the_last_in_order_gives_its_blocks_to_those_before_it() -> None:
    queue = scheduler(num_blocks=4)
    queue.add(request("a", num_prompt=4, max_tokens=8))
    queue.add(request("b", num_prompt=4, max_tokens=8))

    steps = run(queue, 6)

    assert steps[:5] == [[("a", 4), ("b", 4)], *[[("a", 1), ("b", 1)]] * 4]
    assert steps[5] == [("a", 1)]
    assert (names(queue.running), queue.num_waiting, queue.num_preempted) == (["a"], 1, 1)


def test_a_preempted_sequence_comes_back_and_finishes_with_all_its_tokens() -> None:
    queue = scheduler(num_blocks=4)
    sequences = [queue.add(request(name, num_prompt=4, max_tokens=8)) for name in "ab"]

    finished = run_to_the_end(queue)

    assert finished == ["a", "b"]
    assert [sequence.num_generated for sequence in sequences] == [8, 8]
    assert queue.num_preempted == 1
    assert (queue.running, queue.num_waiting, queue.kv_tokens_used) == ([], 0, 0)


def test_a_preempted_sequence_is_computed_anew_with_the_tokens_it_had() -> None:
    queue = scheduler(num_blocks=4)
    for name in "ab":
        queue.add(request(name, num_prompt=4, max_tokens=8))

    # Step 6 preempts b, at 9 tokens; a finishes in step 8; of b, 2 blocks were computed, of which
    # a took the last.
    steps = run(queue, 9)

    assert steps[5:] == [[("a", 1)], [("a", 1)], [("a", 1)], [("b", 5)]]
    assert queue.num_reused_tokens == 4


def test_a_preempted_sequence_goes_before_those_that_came_later() -> None:
    queue = scheduler(num_blocks=4)
    for name, max_tokens in [("a", 8), ("b", 8)]:
        queue.add(request(name, num_prompt=4, max_tokens=max_tokens))
    run(queue, 6)
    queue.add(request("c", num_prompt=4, max_tokens=1))

    assert queue.num_preempted == 1
    assert run_to_the_end(queue) == ["a", "c", "b"]
    assert queue.num_preempted == 1


def test_priority_decides_who_is_preempted() -> None:
    queue = scheduler(num_blocks=4)
    queue.add(request("plain", num_prompt=4, max_tokens=8))
    queue.add(request("urgent", num_prompt=4, max_tokens=8, priority=-1))

    run(queue, 6)

    assert names(queue.running) == ["urgent"]
    assert run_to_the_end(queue) == ["urgent", "plain"]


@pytest.mark.parametrize(("restarted", "preempted"), [("a", "b"), ("b", "b"), ("ab", "b")])
def test_what_was_shared_and_is_computed_apart_makes_the_last_in_order_wait(
    restarted: str, preempted: str
) -> None:
    queue = scheduler(num_blocks=6)
    for name in "ab":
        queue.add(request(name, num_prompt=9, max_tokens=8, salt=""))
        run(queue, 1)
    run(queue, 4)
    assert queue.kv_tokens_used == 6 * BLOCK_TOKENS

    # Each has 4 blocks, 2 of them shared; it will need 4 of its own, of 6.
    for sequence in list(queue.running):
        if sequence.request.request_id in restarted:
            queue.restart(sequence)
    waited = set()
    finished: list[str] = []
    while (step := schedule(queue)).chunks:
        waited |= {"a", "b"} - {*names(queue.running), *finished}
        for chunk in step.chunks:
            chunk.sequence.is_suspect &= not chunk.is_last
        finished += names(compute(queue, step))

    assert (finished, waited, queue.num_preempted) == (["a", "b"], {preempted}, 1)


@pytest.mark.parametrize("window_tokens", [1, 4, 8, 9])
def test_a_windowed_sequence_holds_its_window_and_one_block_more(window_tokens: int) -> None:
    num_blocks = -(-window_tokens // BLOCK_TOKENS) + 1
    queue = scheduler(window_tokens, num_blocks=num_blocks, step_tokens=7)
    queue.add(request("a", num_prompt=50, max_tokens=50))

    finished = run_to_the_end(queue)

    assert finished == ["a"]
    assert queue.num_preempted == 0


def test_a_short_prompt_is_not_held_up_by_a_windowed_one_longer_than_the_cache() -> None:
    queue = scheduler(window_tokens=8, num_blocks=10, step_tokens=8)
    queue.add(request("long", num_prompt=400))
    run(queue, 1, step_tokens=8)

    queue.add(request("short", num_prompt=4))

    assert planned(schedule(queue, step_tokens=8)) == [("long", 4), ("short", 4)]


def test_a_windowed_model_takes_requests_longer_than_its_cache() -> None:
    queue = scheduler(window_tokens=8, num_blocks=3)

    queue.add(request("a", num_prompt=400, max_tokens=400))

    assert len(schedule(queue).chunks) == 1


def test_an_equal_beginning_is_computed_once() -> None:
    queue = scheduler()
    queue.add(request("a", num_prompt=10, max_tokens=1, salt=""))
    run(queue, 1)

    queue.add(request("b", num_prompt=11, max_tokens=1, salt=""))
    step = schedule(queue)

    assert planned(step) == [("b", 3)]
    assert queue.num_reused_tokens == 8


def test_another_salt_shares_nothing() -> None:
    queue = scheduler()
    queue.add(request("a", num_prompt=10, max_tokens=1, salt="one"))
    run(queue, 1)

    queue.add(request("b", num_prompt=10, max_tokens=1, salt="other"))

    assert planned(schedule(queue)) == [("b", 10)]
    assert queue.num_reused_tokens == 0


def test_shared_blocks_count_once() -> None:
    queue = scheduler()
    queue.add(request("a", num_prompt=9, salt=""))
    run(queue, 1)

    queue.add(request("b", num_prompt=9, salt=""))
    step = schedule(queue)

    assert planned(step) == [("a", 1), ("b", 1)]
    assert step.copies == []
    assert queue.kv_tokens_used == 4 * BLOCK_TOKENS


def test_a_whole_prompt_that_another_still_reads_is_copied_before_its_last_token() -> None:
    queue = scheduler()
    first = queue.add(request("a", num_prompt=8, salt=""))
    run(queue, 1)

    second = queue.add(request("b", num_prompt=8, salt=""))
    step = schedule(queue)

    assert planned(step) == [("a", 1), ("b", 1)]
    assert step.copies == [(first.table.blocks[1], second.table.blocks[1])]
    assert first.table.blocks[0] == second.table.blocks[0]


def test_blocks_of_a_sequence_that_was_restarted_before_it_was_computed_are_not_reused() -> None:
    queue = scheduler()
    sequence = queue.add(request("a", num_prompt=10, salt=""))
    schedule(queue)
    queue.restart(sequence)
    queue.remove(sequence)

    queue.add(request("b", num_prompt=10, salt=""))

    assert planned(schedule(queue)) == [("b", 10)]


def test_a_suspect_runs_alone_and_from_its_first_token() -> None:
    queue = scheduler(step_tokens=3)
    for name in "abc":
        queue.add(request(name, max_tokens=20))
    run(queue, 10, step_tokens=3)
    suspect = queue.running[1]

    queue.restart(suspect)

    assert run(queue, 3, step_tokens=3) == [[("b", 3)]] * 3


def test_suspects_take_turns() -> None:
    queue = scheduler()
    suspects = [queue.add(request(name)) for name in "ab"]
    run(queue, 1)
    for suspect in suspects:
        queue.restart(suspect)

    steps = run(queue, 1)
    suspects[0].is_suspect = False

    assert [*steps, *run(queue, 1)] == [[("a", 5)], [("b", 5)]]


def test_a_suspect_gets_the_blocks_it_needs() -> None:
    queue = scheduler(num_blocks=4)
    first, second = (queue.add(request(name, num_prompt=4, max_tokens=8)) for name in "ab")
    run(queue, 5)
    assert first.num_computed == second.num_computed == 8

    queue.restart(first)
    steps = run(queue, 1)
    assert queue.num_preempted == 0
    first.is_suspect = False

    assert steps == [[("a", 8)]]
    assert run_to_the_end(queue) == ["a", "b"]
