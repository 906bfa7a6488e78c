"""Mistral's own layout: `params.json` and `consolidated.safetensors`, whole or in shards."""

import re
from collections.abc import Collection
from pathlib import Path

from model.checkpoint.files import MAX_CONFIG_BYTES, read_object
from model.checkpoint.layout import Index, Layout, check_no_other_shards, read_index
from model.checkpoint.names import CONSOLIDATED, sources
from model.config import ModelConfig, from_params
from model.errors import CheckpointError, ConfigError

CONFIG_FILE = "params.json"
INDEX_FILE = "consolidated.safetensors.index.json"
SINGLE_FILE = "consolidated.safetensors"
_SHARD = re.compile(r"consolidated-(\d{5})-of-(\d{5})\.safetensors")


def find(folder: Path, names: Collection[str]) -> Layout | None:
    """Read the layout of a folder that holds these names; None if it is not Mistral's."""
    shards = {name for name in names if _SHARD.fullmatch(name) or name == SINGLE_FILE}
    if not shards:
        return None
    index = read_index(folder, INDEX_FILE) if INDEX_FILE in names else None
    wanted = _shard_names(folder, index, shards)
    check_no_other_shards(folder, wanted, shards)
    config = _read_config(folder)
    return Layout(
        config=config,
        shard_names=tuple(sorted(wanted)),
        index=index,
        sources=sources(config, CONSOLIDATED),
        ignored=frozenset(),
        says_dtype=False,
    )


def _shard_names(folder: Path, index: Index | None, shards: set[str]) -> set[str]:
    if index is not None:
        return {*index.weight_map.values()}
    if SINGLE_FILE in shards:
        return {SINGLE_FILE}
    last = max(shards)
    total = last.rpartition("-")[2].removesuffix(".safetensors")
    wanted = {
        f"consolidated-{number:05}-of-{total}.safetensors" for number in range(1, int(total) + 1)
    }
    if missing := sorted(wanted - shards):
        raise CheckpointError(str(folder / missing[0]), f"missing beside {last}")
    return wanted


def _read_config(folder: Path) -> ModelConfig:
    content = read_object(folder, CONFIG_FILE, MAX_CONFIG_BYTES)
    try:
        return from_params(content)
    except ConfigError as error:
        raise error.in_file(str(folder / CONFIG_FILE)) from error
