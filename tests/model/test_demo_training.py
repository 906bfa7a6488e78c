"""The demo model's training: its forward pass, its optimiser, its files."""

from pathlib import Path

import pytest
import torch

from model.config import from_hugging_face
from model.demo.batches import Batch, pack
from model.demo.conversation import single_turn
from model.demo.export import hugging_face_config, load_network, save_network
from model.demo.muon import orthogonalize
from model.demo.network import Network, Shape
from model.demo.optimizer import Optimizer
from model.demo.schedule import CONTEXT_TOKENS, context_at, learning_rate_factor
from model.demo.scoring import exact_answers
from model.demo.template import Encoded, encode
from model.demo.training_run import TrainingRun
from tests.oracles.hugging_face import oracle_logits

TINY = Shape(
    vocab_size=98,
    context_tokens=64,
    dim=32,
    num_layers=2,
    head_dim=8,
    hidden_dim=48,
)


class Letters:
    """One id per printable ASCII character, after the three control ids."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 29 for letter in text]


LETTERS = Letters()


def random_network(shape: Shape) -> Network:
    """A network whose every matrix is random; fresh ones have zeros at the end of each branch."""
    torch.manual_seed(0)
    network = Network(shape, torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    return network


def random_batch(num_rows: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for length in range(10, 10 + num_rows):
        ids = torch.randint(3, TINY.vocab_size, (length,), generator=generator).tolist()
        rows.append(Encoded("json", ids, [-1] * 5 + [0] * (length - 5)))
    return pack(rows)


def test_checkpoint_has_the_logits_of_transformers(tmp_path: Path) -> None:
    network = random_network(TINY)
    ids = torch.randint(TINY.vocab_size, (40,), generator=torch.Generator().manual_seed(2))

    save_network(network, tmp_path)
    with torch.no_grad():
        hidden_TD, _ = network(ids, torch.tensor([40]))
        logits_TV = network.logits(hidden_TD)

    wanted_TV = oracle_logits(tmp_path, ids.tolist())
    torch.testing.assert_close(logits_TV, wanted_TV, atol=1e-4, rtol=0)


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    network, batch = random_network(TINY), random_batch(3)
    lengths = batch.lengths_B.tolist()

    with torch.no_grad():
        together, _ = network(batch.ids_T, batch.lengths_B)
        alone = [
            network(ids, torch.tensor([len(ids)]))[0] for ids in torch.split(batch.ids_T, lengths)
        ]

    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_load_gives_back_what_save_wrote(tmp_path: Path) -> None:
    network = random_network(TINY)

    save_network(network, tmp_path)
    loaded = load_network(tmp_path)

    assert loaded.shape == network.shape
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_config_can_be_served() -> None:
    config = from_hugging_face(hugging_face_config(TINY))

    assert (config.num_experts, config.top_k, config.head_dim) == (8, 2, 8)
    assert (config.rope_theta, config.window_tokens, config.dtype) == (1e6, None, "float32")


def test_steps_lower_the_loss_of_a_repeated_batch() -> None:
    network, batch = Network(TINY), random_batch(4)
    run = TrainingRun(network, Optimizer(network))

    losses = [run.learn([batch], 1.0) for _ in range(30)]

    assert losses[0] > 4.0
    assert losses[-1] < 1.0
    assert (run.step, run.num_tokens) == (30, 30 * (10 + 11 + 12 + 13))


def test_a_restored_run_continues_like_one_that_never_stopped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = Network(TINY), Network(TINY)
    unbroken, resumed = (TrainingRun(network, Optimizer(network)) for network in (first, second))
    batch = random_batch(3)
    for _ in range(3):
        unbroken.learn([batch], 1.0)

    unbroken.save(tmp_path / "state.safetensors")
    resumed.restore(tmp_path / "state.safetensors")

    assert resumed.learn([batch], 1.0) == unbroken.learn([batch], 1.0)
    assert resumed.learn([batch], 1.0) == unbroken.learn([batch], 1.0)
    assert resumed.step == unbroken.step == 5


def test_weights_of_a_batch_mark_answers_prompts_and_row_ends() -> None:
    batch = pack([Encoded("json", [1, 5, 6, 2], [-1, -1, 0, 0])])

    assert batch.targets_T.tolist()[:3] == [5, 6, 2]
    assert batch.weights_T.tolist() == pytest.approx([0.1, 1.0, 1.0, 0.0])


def test_orthogonalize_brings_singular_values_near_one() -> None:
    matrices = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(0))

    values = torch.linalg.svdvals(orthogonalize(matrices))

    assert values.min() > 0.5
    assert values.max() < 1.5


def test_schedule_warms_up_holds_and_falls_to_zero() -> None:
    assert learning_rate_factor(0.0, step=0) < 0.1
    assert learning_rate_factor(0.4, step=1_000) == 1.0
    assert learning_rate_factor(0.75, step=1_000) == pytest.approx(0.5)
    assert learning_rate_factor(1.2, step=1_000) == 0.0
    assert context_at(0.0) < context_at(0.5) < context_at(0.9) == CONTEXT_TOKENS


def test_exact_answers_tells_a_learnt_answer_from_a_wrong_one() -> None:
    network = Network(TINY)
    run = TrainingRun(network, Optimizer(network))
    learnt = single_turn("json", "which one?", "this one")
    batch = pack([encode(learnt, LETTERS)])
    for _ in range(30):
        run.learn([batch], 1.0)

    verdicts = exact_answers(
        network, LETTERS, [single_turn("json", "which one?", "that one"), learnt]
    )

    assert verdicts == [False, True]
