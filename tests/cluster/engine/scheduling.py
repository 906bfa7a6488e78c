"""A scheduler without an engine: requests, steps played on paper, and what they held."""

from cluster.config import EngineConfig
from cluster.engine.pace import Pace
from cluster.engine.request import GenerateRequest
from cluster.engine.scheduler import Scheduler
from cluster.engine.sequence import ScheduledStep, Sequence
from model.sampling_params import SamplingParams

BLOCK_TOKENS = 4


def request(
    name: str,
    num_prompt: int = 4,
    max_tokens: int = 4,
    output_ids: tuple[int, ...] = (),
    priority: int = 0,
    salt: str | None = None,
) -> GenerateRequest:
    """A request whose prompt nobody shares, unless a salt is given."""
    return GenerateRequest(
        request_id=name,
        prompt_ids=tuple(range(1, num_prompt + 1)),
        params=SamplingParams(max_tokens=max_tokens, stop_token_ids=(0,)),
        output_ids=output_ids,
        priority=priority,
        cache_salt=name if salt is None else salt,
    )


def scheduler(
    window_tokens: int | None = None,
    max_running: int = 8,
    max_waiting: int = 8,
    step_tokens: int = 100,
    num_blocks: int = 100,
) -> Scheduler:
    config = EngineConfig(
        max_running=max_running,
        max_waiting=max_waiting,
        step_tokens=step_tokens,
        kv_tokens=num_blocks * BLOCK_TOKENS,
        block_tokens=BLOCK_TOKENS,
    )
    return Scheduler(config, window_tokens)


def schedule(queue: Scheduler, step_tokens: int = 100) -> ScheduledStep:
    """The next step at a pace that has learnt nothing yet, so that it is filled."""
    return queue.schedule(Pace(step_tokens))


def names(sequences: list[Sequence]) -> list[str]:
    return [sequence.request.request_id for sequence in sequences]


def planned(step: ScheduledStep) -> list[tuple[str, int]]:
    """Request id and number of tokens of each chunk."""
    return [(chunk.sequence.request.request_id, chunk.num_tokens) for chunk in step.chunks]


def compute(queue: Scheduler, step: ScheduledStep) -> list[Sequence]:
    """Play the engine: count the step as computed, sample id 9; the sequences that finished."""
    sampled = [chunk.sequence for chunk in step.chunks if chunk.is_last]
    queue.commit(step)
    finished = [sequence for sequence in sampled if sequence.append(9) is not None]
    for sequence in finished:
        queue.remove(sequence)
    return finished


def run(queue: Scheduler, num_steps: int, step_tokens: int = 100) -> list[list[tuple[str, int]]]:
    """Compute some steps; what each of them held."""
    steps = []
    for _ in range(num_steps):
        step = schedule(queue, step_tokens)
        steps.append(planned(step))
        compute(queue, step)
    return steps


def run_to_the_end(queue: Scheduler, num_steps_at_most: int = 500) -> list[str]:
    """Compute until nothing is left to do; who finished, in that order."""
    finished: list[str] = []
    for _ in range(num_steps_at_most):
        step = schedule(queue)
        if not step.chunks:
            return finished
        finished += names(compute(queue, step))
    raise AssertionError((queue.running, queue.num_waiting))
