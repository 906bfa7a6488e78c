"""Hugging Face's layout: `config.json` and `model.safetensors`, whole or in numbered shards."""

import fnmatch
import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from model.checkpoint.files import MAX_CONFIG_BYTES, read_object
from model.checkpoint.layout import Index, Layout, check_no_other_shards, read_index
from model.checkpoint.names import HUGGING_FACE, HUGGING_FACE_IGNORED, ignored_names, sources
from model.config import ModelConfig, from_hugging_face
from model.errors import CheckpointError, ConfigError

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
SHARD_PATTERN = "model-*-of-*.safetensors"

# What a config.json may ask a loader to run; mixray has no code path for it.
_CODE_KEYS = ("auto_map", "trust_remote_code")

_log = logging.getLogger(__name__)


def find(folder: Path, names: Collection[str]) -> Layout | None:
    """Read the layout of a folder that holds these names; None if it is not Hugging Face's."""
    shards = {*fnmatch.filter(names, SHARD_PATTERN)} | ({SINGLE_FILE} & {*names})
    if not shards and INDEX_FILE not in names:
        return None
    index = read_index(folder, INDEX_FILE) if INDEX_FILE in names else None
    wanted = _shard_names(folder, index, shards)
    check_no_other_shards(folder, wanted, shards)
    config = _read_config(folder)
    return Layout(
        config=config,
        shard_names=tuple(sorted(wanted)),
        index=index,
        sources=sources(config, HUGGING_FACE),
        ignored=ignored_names(config, HUGGING_FACE_IGNORED),
        says_dtype=True,
    )


def _shard_names(folder: Path, index: Index | None, shards: set[str]) -> set[str]:
    if index is not None:
        return {*index.weight_map.values()}
    if SINGLE_FILE not in shards:
        raise CheckpointError(str(folder / INDEX_FILE), f"missing beside {min(shards)}")
    return {SINGLE_FILE}


def _read_config(folder: Path) -> ModelConfig:
    content = read_object(folder, CONFIG_FILE, MAX_CONFIG_BYTES)
    _warn_of_code(folder, content)
    try:
        return from_hugging_face(content)
    except ConfigError as error:
        raise error.in_file(str(folder / CONFIG_FILE)) from error


def _warn_of_code(folder: Path, content: Mapping[str, object]) -> None:
    for key in _CODE_KEYS:
        if content.get(key):
            _log.warning("checkpoint=%s ignored=%s reason=remote_code", folder, key)
