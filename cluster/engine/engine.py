"""Continuous batching: requests join and leave between steps, tokens go out after each.

The engine knows tokens, not text, and nothing of Ray. One thread runs `run`; every other method may
be called from any thread and takes effect between two steps. A fault while a step is computed ends
at most the request that causes it: the step's sequences start over, one by one. An expert that
nobody serves ends all requests of the step, since nearly all would need it soon.
"""

import logging
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cluster.config import EngineConfig
from cluster.engine.model_runner import ModelRunner, check_finite
from cluster.engine.pace import Pace
from cluster.engine.request import GenerateRequest, TokenEvent
from cluster.engine.scheduler import Scheduler
from cluster.engine.sequence import ScheduledChunk, ScheduledStep, Sequence
from cluster.errors import ClusterError, EngineStopped, RequestFailed
from model.batch import Chunk
from model.sampling import Sample, SampleRow, sample
from routing.errors import ExpertUnavailable

logger = logging.getLogger(__name__)

Told = TypeVar("Told")


class Listener(Protocol):
    """Who asked. Called on the engine's thread; must not block."""

    def token(self, event: TokenEvent) -> None:
        """A token was generated; the last one has a finish reason."""

    def failed(self, error: Exception) -> None:
        """The request ended without finishing."""


@dataclass(slots=True)
class _Active:
    """A request in the engine: its sequence and who listens."""

    sequence: Sequence
    listener: Listener


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for `status`; the last two count since the start."""

    num_running: int
    num_waiting: int
    kv_tokens_used: int
    kv_tokens: int
    num_preempted: int
    num_reused_tokens: int


class Engine:
    """Mutable state: the scheduler's queues and `_active`, touched by the engine's thread alone."""

    def __init__(
        self,
        runner: ModelRunner,
        config: EngineConfig,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._runner = runner
        self._config = config
        self._now_s = now_s
        self._scheduler = Scheduler(config, runner.config.window_tokens)
        self._pace = Pace(config.step_tokens)
        self._active: dict[str, _Active] = {}
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._is_stopping = False
        self._is_over = False
        self._num_steps = 0

    def add_request(self, request: GenerateRequest, listener: Listener) -> None:
        """Queue a request; every outcome, a refusal too, reaches the listener."""
        self._submit(lambda: self._add(request, listener))

    def cancel(self, request_id: str) -> None:
        """Drop a request, if it is still here; its listener hears nothing more."""
        self._submit(lambda: self._drop(request_id))

    def probe(self) -> Future[None]:
        """Prove between two steps that every layer and expert computes; see `ModelRunner.probe`."""
        future: Future[None] = Future()
        self._submit(lambda: _run_into(future, self._runner.probe))
        return future

    def stop(self) -> None:
        """End `run` after the step under way; requests that are left fail with EngineStopped."""
        self._submit(self._begin_to_stop)

    def stats(self) -> EngineStats:
        """Counts at this moment; may be a step old."""
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=self._scheduler.num_waiting,
            kv_tokens_used=self._scheduler.kv_tokens_used,
            kv_tokens=self._config.num_blocks * self._config.block_tokens,
            num_preempted=self._scheduler.num_preempted,
            num_reused_tokens=self._scheduler.num_reused_tokens,
        )

    def run(self) -> None:
        """Step until stopped; sleeps while there is nothing to do."""
        while not self._is_stopping:
            if not self._active:
                self._read_inbox(is_idle=True)
            self.step()
        self._is_over = True
        self._fail_what_is_left()

    def step(self) -> None:
        """Run one step, if any request has work to do."""
        self._read_inbox(is_idle=False)
        step = self._scheduler.schedule(self._pace)
        if not step.chunks:
            return
        self._num_steps += 1
        started_s = self._now_s()
        try:
            samples = self._compute(step)
        except ExpertUnavailable as error:
            for chunk in step.chunks:
                self._fail(chunk.sequence.request.request_id, error)
        except Exception:  # a fault of one request must not end the others
            logger.exception("step=%d sequences=%d: step failed", self._num_steps, len(step.chunks))
            self._isolate(step.chunks)
        else:
            self._pace.observe(step.num_decodes, step.num_prompt_tokens, self._now_s() - started_s)
            self._deliver(step, samples)

    def _submit(self, action: Callable[[], object]) -> None:
        """Have an action run between two steps; after the last one, at once and in vain."""
        self._inbox.put(action)
        if self._is_over:
            self._fail_what_is_left()

    def _fail_what_is_left(self) -> None:
        self._read_inbox(is_idle=False)
        for request_id in list(self._active):
            self._fail(request_id, EngineStopped("the router was shut down"))

    def _read_inbox(self, is_idle: bool) -> None:
        try:
            self._inbox.get(block=is_idle)()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            return

    def _begin_to_stop(self) -> None:
        self._is_stopping = True

    def _add(self, request: GenerateRequest, listener: Listener) -> None:
        try:
            if request.request_id in self._active:
                raise RequestFailed(f"request id {request.request_id} is in use")
            sequence = self._scheduler.add(request)
        except ClusterError as error:
            _tell(listener.failed, error)
        else:
            self._active[request.request_id] = _Active(sequence, listener)

    def _drop(self, request_id: str) -> _Active | None:
        active = self._active.pop(request_id, None)
        if active is not None:
            self._scheduler.remove(active.sequence)
        return active

    def _fail(self, request_id: str, error: Exception) -> None:
        active = self._drop(request_id)
        if active is not None:
            _tell(active.listener.failed, error)

    def _compute(self, step: ScheduledStep) -> list[Sample]:
        """Forward and sample; one sample for each chunk that is its sequence's last."""
        chunks = [_model_chunk(chunk) for chunk in step.chunks]
        logits_BV = self._runner.run(chunks, step.copies)
        # Those of every chunk, since what a chunk has put into the cache is reused by others.
        check_finite(logits_BV, "logits")
        last = [row for row, chunk in enumerate(step.chunks) if chunk.is_last]
        if len(last) < len(chunks):
            logits_BV = logits_BV[last]
        return sample(logits_BV, [_sample_row(step.chunks[row].sequence) for row in last])

    def _deliver(self, step: ScheduledStep, samples: list[Sample]) -> None:
        """Count the step as computed and hand out its tokens."""
        sampled = [chunk.sequence for chunk in step.chunks if chunk.is_last]
        self._scheduler.commit(step)
        for sequence, token in zip(sampled, samples, strict=True):
            sequence.is_suspect = False
            self._emit(sequence, token)

    def _emit(self, sequence: Sequence, token: Sample) -> None:
        request_id = sequence.request.request_id
        finish_reason = sequence.append(token.token_id)
        listener = self._active[request_id].listener
        if finish_reason is not None:
            self._drop(request_id)
        event = TokenEvent(token.token_id, token.logprob, token.top_logprobs, finish_reason)
        _tell(listener.token, event)

    def _isolate(self, chunks: list[ScheduledChunk]) -> None:
        """Let each sequence of a failed step start over alone; one that was alone has failed."""
        for chunk in chunks:
            sequence = chunk.sequence
            if len(chunks) == 1:
                self._fail(sequence.request.request_id, RequestFailed("internal error"))
            else:
                self._scheduler.restart(sequence)


def _model_chunk(chunk: ScheduledChunk) -> Chunk:
    table = chunk.sequence.table
    return Chunk(chunk.token_ids, chunk.sequence.num_computed, table.blocks, table.first)


def _sample_row(sequence: Sequence) -> SampleRow:
    num_prompt = len(sequence.request.prompt_ids)
    return SampleRow(
        params=sequence.request.params,
        position=len(sequence.token_ids),
        prompt_ids=sequence.request.prompt_ids,
        output_ids=sequence.token_ids[num_prompt:],
    )


def _tell(hear: Callable[[Told], None], told: Told) -> None:
    """Call a listener; one that fails, because its event loop is gone, harms nobody else."""
    try:
        hear(told)
    except Exception:
        logger.exception("a listener failed")


def _run_into(future: "Future[None]", function: Callable[[], None]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        function()
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(None)
