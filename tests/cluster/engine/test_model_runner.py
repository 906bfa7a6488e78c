"""The probe: a real token through every layer and every expert."""

from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest
import torch

from cluster.config import EngineConfig
from cluster.engine.engine import Engine
from cluster.engine.model_runner import ModelRunner
from model.config import ModelConfig
from routing.errors import ExpertUnavailable
from routing.experts import Done, ExpertCall, Experts, LocalExperts
from tests.checkpoints import TINY_DENSE, TINY_MOE, random_tensors
from tests.cluster.engine.running import add, engine_of, finish, golden
from tests.running import build


@dataclass
class CountingExperts:
    """Counts the rows of each (layer, expert)."""

    experts: LocalExperts
    rows: Counter[tuple[int, int]] = field(default_factory=Counter)

    def start(self, call: ExpertCall) -> Done:
        for expert_id in call.routes.expert_ids_TK.flatten().tolist():
            self.rows[call.layer, expert_id] += 1
        return self.experts.start(call)


class LostExperts:
    """Nobody answers."""

    def start(self, call: ExpertCall) -> Done:
        raise ExpertUnavailable("on purpose")


def runner_with_nan_in(name: str, config: ModelConfig = TINY_MOE) -> ModelRunner:
    tensors = random_tensors(config, seed=1)
    tensors[name].view(-1)[0] = torch.nan
    return ModelRunner(*build(config, tensors), EngineConfig())


def engine_with(experts: Experts) -> Engine:
    transformer, _ = build(TINY_MOE, random_tensors(TINY_MOE, seed=1))
    return Engine(ModelRunner(transformer, experts, EngineConfig()), EngineConfig())


def test_the_probe_touches_every_expert_of_every_layer() -> None:
    transformer, local = build(TINY_MOE, random_tensors(TINY_MOE, seed=1))
    experts = CountingExperts(local)

    ModelRunner(transformer, experts, EngineConfig()).probe()

    everything = {
        (layer, expert_id)
        for layer in range(TINY_MOE.num_layers)
        for expert_id in range(TINY_MOE.num_experts)
    }
    assert experts.rows.keys() == everything


@pytest.mark.parametrize("expert_id", range(TINY_MOE.num_experts))
def test_the_probe_finds_a_broken_expert_that_the_token_itself_may_not_use(expert_id: int) -> None:
    runner = runner_with_nan_in(f"layers.2.experts.{expert_id}.w2.weight")

    with pytest.raises(ArithmeticError, match="experts of layer 2"):
        runner.probe()


def test_the_probe_finds_a_broken_output() -> None:
    runner = runner_with_nan_in("output.weight")

    with pytest.raises(ArithmeticError, match="logits"):
        runner.probe()


def test_a_dense_model_is_probed_without_experts() -> None:
    healthy, broken = engine_of(TINY_DENSE), runner_with_nan_in("output.weight", TINY_DENSE)

    future = healthy.probe()
    healthy.step()

    assert future.result(timeout=0) is None
    with pytest.raises(ArithmeticError):
        broken.probe()


def test_the_engine_probes_between_two_steps_and_leaves_requests_alone() -> None:
    engine = engine_of(TINY_MOE)
    recorder = add(engine, "a", [1, 5, 9], max_tokens=6)
    engine.step()

    future = engine.probe()
    finish(engine)

    assert future.done()
    assert recorder.ids == golden(TINY_MOE, [1, 5, 9], 6)


def test_a_failed_probe_reaches_who_asked_and_not_the_engine() -> None:
    engine = engine_with(LostExperts())

    future = engine.probe()
    engine.step()

    assert isinstance(future.exception(timeout=0), ExpertUnavailable)


def test_a_probe_that_nobody_waits_for_any_more_is_not_made() -> None:
    transformer, local = build(TINY_MOE, random_tensors(TINY_MOE, seed=1))
    experts = CountingExperts(local)
    engine = Engine(ModelRunner(transformer, experts, EngineConfig()), EngineConfig())

    future = engine.probe()
    future.cancel()
    engine.step()

    assert not experts.rows


def test_a_probe_cancelled_while_it_runs_does_not_end_the_engine() -> None:
    cancelled: list[Future[None]] = []

    class CancellingExperts:
        def start(self, call: ExpertCall) -> Done:
            cancelled[0].cancel()
            raise ExpertUnavailable("on purpose")

    engine = engine_with(CancellingExperts())

    cancelled.append(engine.probe())
    engine.step()

    assert isinstance(cancelled[0].exception(timeout=0), ExpertUnavailable)
