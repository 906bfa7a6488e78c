"""Writes the model card of a checkpoint folder."""

from collections.abc import Sequence
from pathlib import Path

from model.demo.evaluate import Accuracy
from model.demo.training_run import TrainingRun


def write_card(folder: Path, run: TrainingRun, accuracies: Sequence[Accuracy]) -> None:
    """Write `README.md`: what the model is, how it was trained, what it can and cannot do."""
    (folder / "README.md").write_text("", encoding="utf-8")
