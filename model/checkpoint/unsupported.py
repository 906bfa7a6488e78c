"""Folders that hold a model in a form mixray does not read, and what to do about each."""

import fnmatch
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

from model.errors import CheckpointError

# Refused whatever else is there: the weights beside them are not the model that is meant.
_NEVER = {
    "adapter_config.json": "an adapter; merge it into its base model first",
    "quant_config.json": "quantised weights; use the original checkpoint",
    "quantize_config.json": "quantised weights; use the original checkpoint",
}

# Refused when there are no safetensors; some repositories carry both.
_INSTEAD_OF_WEIGHTS = {
    "*.gguf": "a GGUF file; use the original safetensors",
    "*.bin": "a pickle, which can run code; convert it to safetensors",
    "*.pth": "a pickle, which can run code; convert it to safetensors",
    "*.pt": "a pickle, which can run code; convert it to safetensors",
    "*.ckpt": "a pickle, which can run code; convert it to safetensors",
    "*.pkl": "a pickle, which can run code; convert it to safetensors",
    "*.npz": "a NumPy archive; convert it to safetensors",
}


def refuse_unsupported(folder: Path, names: Collection[str]) -> None:
    """Refuse a folder whose weights are not a whole, unquantised model."""
    for name, what in _NEVER.items():
        if name in names:
            raise CheckpointError(str(folder / name), f"this is {what}")


def refuse_without_weights(folder: Path, names: Collection[str]) -> NoReturn:
    """Say what a folder without safetensors holds instead."""
    for pattern, what in _INSTEAD_OF_WEIGHTS.items():
        if found := sorted(fnmatch.filter(names, pattern)):
            raise CheckpointError(str(folder / found[0]), f"this is {what}")
    wanted = "model.safetensors with config.json or consolidated.safetensors with params.json"
    raise CheckpointError(str(folder), f"no weights found; want {wanted}")
