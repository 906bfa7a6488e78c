"""Broken and hostile checkpoint folders: each refused in time, with the culprit's name."""

import json
import os
import pickle
import random
import signal
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint.header import MAX_HEADER_BYTES
from model.checkpoint.load import open_checkpoint
from model.errors import (
    CheckpointError,
    ConfigError,
    MissingTensor,
    ModelError,
    ShapeMismatch,
    UnexpectedTensor,
)
from tests.checkpoints import TINY_MOE, write_consolidated, write_hugging_face, write_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FIRST, LAST = "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"
GATE = "model.layers.2.block_sparse_moe.gate.weight"
EXPERT = "model.layers.2.block_sparse_moe.experts.3."
LIMIT_S = 5.0

Header = dict[str, Any]


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Fail a test that waits or computes for too long."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"not refused within {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good checkpoint in one file, for a test to spoil."""
    return write_hugging_face(tmp_path / "model", TINY_MOE)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A good checkpoint in three files, for a test to spoil."""
    return write_hugging_face(tmp_path / "model", TINY_MOE, shards=3)


def refused(folder: Path, *words: str, error: type[ModelError] = CheckpointError) -> None:
    """Assert that the folder is refused in one short line that has all these words."""
    with pytest.raises(ModelError) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert type(caught.value) is error, message
    for word in words:
        assert word in message
    assert "\n" not in message
    assert message.isascii() and message.isprintable()
    assert len(message) < 1000


def edit_header(file: Path, change: Callable[[Header], None]) -> None:
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    change(header)
    write_raw(file, json.dumps(header).encode(), content[start:])


def write_raw(file: Path, header: bytes, data: bytes = b"") -> None:
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)


def edit_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file({name: each.contiguous() for name, each in tensors.items()}, file)


def edit_json(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    write_json(file, content)


class TestFile:
    @pytest.mark.parametrize("num_bytes", [0, 7, 8, 9])
    def test_too_few_bytes(self, folder: Path, num_bytes: int) -> None:
        os.truncate(folder / WEIGHTS, num_bytes)

        refused(folder, WEIGHTS, f"{num_bytes} bytes are too few")

    @pytest.mark.parametrize("length", [2**63, 2**64 - 1, 200_000_000, MAX_HEADER_BYTES + 1])
    def test_a_header_length_beyond_the_limit(self, folder: Path, length: int) -> None:
        (folder / WEIGHTS).write_bytes(length.to_bytes(8, "little") + b"{}" * 50)

        refused(folder, WEIGHTS, f"header too large: {length}")

    def test_a_header_length_beyond_the_file(self, folder: Path) -> None:
        (folder / WEIGHTS).write_bytes((1000).to_bytes(8, "little") + b"{}" * 50)

        refused(folder, WEIGHTS, "1000 bytes", "has 100", "cut short")

    @pytest.mark.parametrize("cut", ["two bytes", "half", "at the header's end", "in the header"])
    def test_a_file_cut_short(self, folder: Path, cut: str) -> None:
        file = folder / WEIGHTS
        size = file.stat().st_size
        header_end = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        kept = {"two bytes": size - 2, "half": size // 2, "at the header's end": header_end}
        os.truncate(file, kept.get(cut, 100))

        refused(folder, WEIGHTS, "cut short")

    def test_bytes_after_the_last_tensor(self, folder: Path) -> None:
        with zipfile.ZipFile(folder / WEIGHTS, "a") as archive:
            archive.writestr("payload.py", "raise SystemExit")

        refused(folder, WEIGHTS, "tensors end at byte", "the file at")

    @pytest.mark.parametrize(
        ("content", "hint"),
        [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
            (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
            (b"\n\n  <html>" + b" " * 100, "HTML"),
            (b"PK\x03\x04" + b"\0" * 100, "pickle"),
            (pickle.dumps(list(range(100))), "pickle"),
            (b"GGUF\x03\0\0\0" + b"\0" * 100, "GGUF"),
        ],
    )
    def test_another_kind_of_file(self, folder: Path, content: bytes, hint: str) -> None:
        (folder / WEIGHTS).write_bytes(content)

        refused(folder, WEIGHTS, hint)

    @pytest.mark.parametrize(
        "header",
        [b"[]", b"{}}", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000, b'{"a": NaN}'],
        ids=["list", "extra", "not UTF-8", "deep list", "deep object", "NaN"],
    )
    def test_a_header_that_is_not_a_json_object(self, folder: Path, header: bytes) -> None:
        write_raw(folder / WEIGHTS, header)

        refused(folder, WEIGHTS, "JSON")

    def test_a_tensor_named_twice(self, folder: Path) -> None:
        file = folder / WEIGHTS
        content = file.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        again = b'{"lm_head.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
        write_raw(file, again + content[8:start].lstrip()[1:], content[start:])

        refused(folder, WEIGHTS, "lm_head.weight", "twice")

    def test_a_header_of_many_megabytes(self, folder: Path) -> None:
        entry = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
        many = ",".join(entry % number for number in range(70_000))
        write_raw(folder / WEIGHTS, b"{" + many.encode() + b"}")

        refused(folder, "model.embed_tokens.weight", error=MissingTensor)


def set_field(name: str, key: str, value: object) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        header[name][key] = value

    return change


class TestEntries:
    @pytest.mark.parametrize(
        "offsets",
        [[4, 0], [0], [0, 4, 8], [-4, 0], [0.0, 256.0], ["0", "256"], "0:4", None, [True, False]],
    )
    def test_offsets_that_are_no_range(self, folder: Path, offsets: object) -> None:
        edit_header(folder / WEIGHTS, set_field("model.norm.weight", "data_offsets", offsets))

        refused(folder, WEIGHTS, "model.norm.weight", "data_offsets")

    @pytest.mark.parametrize(("shift", "fault"), [(-4, "overlaps"), (4, "follows a gap")])
    def test_tensors_that_overlap_or_leave_a_gap(
        self, folder: Path, shift: int, fault: str
    ) -> None:
        def change(header: Header) -> None:
            start, stop = header["model.norm.weight"]["data_offsets"]
            header["model.norm.weight"]["data_offsets"] = [start + shift, stop + shift]

        edit_header(folder / WEIGHTS, change)

        refused(folder, WEIGHTS, "tensor model.norm.weight", fault)

    def test_two_tensors_in_the_same_bytes(self, folder: Path) -> None:
        def change(header: Header) -> None:
            other = header["model.layers.0.input_layernorm.weight"]
            header["model.norm.weight"]["data_offsets"] = other["data_offsets"]

        edit_header(folder / WEIGHTS, change)

        refused(folder, WEIGHTS, "norm.weight overlaps")

    @pytest.mark.parametrize(
        "shape",
        [[2**32, 2**32, 2], [-1, 2], [2**63], [64.0], "64", None, [1] * 9, [2**62] * 8, [63]],
    )
    def test_shapes_that_do_not_fill_their_bytes(self, folder: Path, shape: object) -> None:
        edit_header(folder / WEIGHTS, set_field("model.norm.weight", "shape", shape))

        refused(folder, WEIGHTS, "tensor model.norm.weight", "shape")

    def test_an_empty_tensor_of_absurd_shape(self, folder: Path) -> None:
        def change(header: Header) -> None:
            header["extra"] = {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}

        edit_header(folder / WEIGHTS, change)

        refused(folder, WEIGHTS, "extra", error=UnexpectedTensor)

    @pytest.mark.parametrize("dtype", ["F64", "I8", "F8_E4M3", "f32", "", 7, None, ["F32"]])
    def test_data_types_outside_the_list(self, folder: Path, dtype: object) -> None:
        edit_header(folder / WEIGHTS, set_field("model.norm.weight", "dtype", dtype))

        refused(folder, WEIGHTS, "tensor model.norm.weight", "dtype", "F32, BF16, F16")

    @pytest.mark.parametrize("value", [None, [], "F32", {"dtype": "F32", "shape": [1]}])
    def test_entries_that_are_not_complete(self, folder: Path, value: object) -> None:
        edit_header(folder / WEIGHTS, lambda header: header.update({"extra": value}))

        refused(folder, WEIGHTS, "tensor extra", "want dtype, shape and data_offsets")

    @pytest.mark.parametrize(
        "name",
        ["../../etc/passwd", "/etc/passwd", "a\0b", "a\nb\x1b[31m", "\ud800", "n" * 1_000_000, ""],
        ids=["parent", "absolute", "NUL", "control", "surrogate", "1 MB", "empty"],
    )
    def test_names_that_are_not_a_tensor_of_the_model(self, folder: Path, name: str) -> None:
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        edit_header(folder / WEIGHTS, lambda header: header.update({name: empty}))

        refused(folder, WEIGHTS, "not part of this configuration", error=UnexpectedTensor)


class TestTensors:
    def test_a_missing_expert(self, folder: Path) -> None:
        edit_tensors(folder / WEIGHTS, lambda tensors: tensors.pop(EXPERT + "w2.weight"))

        refused(folder, str(folder), EXPERT + "w2.weight", error=MissingTensor)

    def test_many_missing_tensors_are_counted(self, folder: Path) -> None:
        edit_json(folder / "config.json", lambda config: config.update(num_hidden_layers=5))

        refused(folder, "model.layers.3.self_attn.q_proj.weight", "more", error=MissingTensor)

    def test_more_layers_than_configured(self, folder: Path) -> None:
        edit_json(folder / "config.json", lambda config: config.update(num_hidden_layers=2))

        refused(folder, WEIGHTS, "model.layers.2.", "more", error=UnexpectedTensor)

    @pytest.mark.parametrize("name", ["w1.weight", "w2.weight", "w3.weight"])
    def test_a_transposed_expert(self, folder: Path, name: str) -> None:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            tensors[EXPERT + name] = tensors[EXPERT + name].T

        edit_tensors(folder / WEIGHTS, change)

        refused(
            folder,
            WEIGHTS,
            EXPERT + name,
            "(64, 96)",
            "(96, 64)",
            "transposed",
            error=ShapeMismatch,
        )

    def test_a_gate_with_a_row_too_few(self, folder: Path) -> None:
        edit_tensors(folder / WEIGHTS, lambda each: each.update({GATE: each[GATE][:7]}))

        refused(folder, WEIGHTS, GATE, "got (7, 64), want (8, 64)", error=ShapeMismatch)

    def test_a_vocabulary_of_another_size(self, folder: Path) -> None:
        edit_json(folder / "config.json", lambda config: config.update(vocab_size=321))

        refused(folder, "embed_tokens", "got (320, 64), want (321, 64)", error=ShapeMismatch)

    def test_two_forms_of_the_same_weights(self, folder: Path) -> None:
        other = "model.layers.2.mlp.gate.weight"
        edit_tensors(folder / WEIGHTS, lambda each: each.update({other: each[GATE].clone()}))

        refused(folder, GATE, other, "same weights")

    def test_an_absurd_but_allowed_configuration(self, folder: Path) -> None:
        huge = {"num_hidden_layers": 128, "num_local_experts": 256, "hidden_size": 65_536}
        edit_json(folder / "config.json", lambda config: config.update(huge))

        refused(folder, "model.layers.0.", "more", error=MissingTensor)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize(
        ("name", "stored"),
        [
            ("layers.2.gate.weight", GATE),
            ("layers.1.ffn_norm.weight", "model.layers.1.post_attention_layernorm.weight"),
            ("norm.weight", "model.norm.weight"),
        ],
    )
    def test_numbers_that_are_not_finite(
        self, folder: Path, name: str, stored: str, value: float
    ) -> None:
        edit_tensors(folder / WEIGHTS, lambda tensors: tensors[stored].view(-1)[3:4].fill_(value))
        checkpoint = open_checkpoint(folder)

        with pytest.raises(CheckpointError, match=f"{WEIGHTS}: tensor {stored} .* not finite"):
            checkpoint.tensors([name], "bfloat16")


class TestIndex:
    def test_a_missing_shard(self, sharded: Path) -> None:
        (sharded / LAST).unlink()

        refused(sharded, LAST, "No such file")

    def test_a_shard_in_no_index(self, sharded: Path) -> None:
        extra = "model-00004-of-00004.safetensors"
        (sharded / extra).write_bytes((sharded / LAST).read_bytes())

        refused(sharded, extra, "no use")

    def test_a_whole_file_beside_shards(self, sharded: Path) -> None:
        (sharded / WEIGHTS).write_bytes(b"")

        refused(sharded, WEIGHTS, "no use")

    def test_shards_without_an_index(self, sharded: Path) -> None:
        (sharded / INDEX).unlink()

        refused(sharded, INDEX, "missing")

    def test_a_tensor_in_two_shards(self, sharded: Path) -> None:
        extra = load_file(sharded / LAST)["model.layers.2.self_attn.q_proj.weight"]
        name = "model.layers.2.self_attn.q_proj.weight"
        edit_tensors(sharded / FIRST, lambda tensors: tensors.update({name: extra}))

        refused(sharded, LAST, name, FIRST)

    def test_a_tensor_in_another_shard_than_listed(self, sharded: Path) -> None:
        edit_json(sharded / INDEX, lambda index: index["weight_map"].update({GATE: FIRST}))

        refused(sharded, INDEX, GATE, FIRST)

    def test_a_tensor_that_is_not_listed(self, sharded: Path) -> None:
        edit_json(sharded / INDEX, lambda index: index["weight_map"].pop(GATE))

        refused(sharded, INDEX, GATE, LAST, "not listed")

    def test_a_listed_tensor_that_is_not_there(self, sharded: Path) -> None:
        edit_json(sharded / INDEX, lambda index: index["weight_map"].update(ghost=FIRST))

        refused(sharded, INDEX, "ghost", FIRST)

    @pytest.mark.parametrize("total", [0, -1, 10**400, "many", 1.5, [1]])
    def test_a_wrong_total_size(self, sharded: Path, total: object) -> None:
        edit_json(sharded / INDEX, lambda index: index["metadata"].update(total_size=total))

        refused(sharded, INDEX, "total_size")

    @pytest.mark.parametrize("weight_map", [None, [], {}, "x", {GATE: 7}, {GATE: None}])
    def test_a_weight_map_of_another_kind(self, sharded: Path, weight_map: object) -> None:
        edit_json(sharded / INDEX, lambda index: index.update(weight_map=weight_map))

        refused(sharded, INDEX, "weight_map")

    @pytest.mark.parametrize(
        "file",
        ["../../other.safetensors", "/etc/passwd", "/dev/zero", "..", "", "a/b", "a\0b", "a\\b"]
        + ["a\x1b[31m", "n" * 300],
        ids=lambda file: ascii(file[:20]),
    )
    def test_a_shard_name_that_is_a_path(self, sharded: Path, file: str) -> None:
        def change(index: dict[str, Any]) -> None:
            index["weight_map"] = dict.fromkeys(index["weight_map"], file)

        for name in (FIRST, "model-00002-of-00003.safetensors", LAST):
            (sharded / name).unlink()
        edit_json(sharded / INDEX, change)

        refused(sharded, str(sharded), "not a path")

    def test_a_missing_consolidated_shard(self, tmp_path: Path) -> None:
        write_consolidated(tmp_path, TINY_MOE, shards=3)
        second = "consolidated-00002-of-00003.safetensors"
        (tmp_path / second).unlink()

        refused(tmp_path, second, "missing")


class TestLinks:
    @pytest.mark.parametrize("target", ["/dev/zero", "/etc/passwd", "../outside"])
    @pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
    def test_a_link_out_of_the_folder(self, folder: Path, name: str, target: str) -> None:
        (folder / name).rename(folder.parent / "outside")
        (folder / name).symlink_to(target)

        refused(folder, name, "leads out of the folder")

    def test_a_snapshot_link_into_another_repository(self, tmp_path: Path) -> None:
        snapshot = write_hugging_face(tmp_path / "repo" / "snapshots" / "0123", TINY_MOE)
        other = tmp_path / "other" / "blobs" / "0123"
        other.parent.mkdir(parents=True)
        (snapshot / WEIGHTS).rename(other)
        (snapshot / WEIGHTS).symlink_to("../../../other/blobs/0123")

        refused(snapshot, WEIGHTS, "leads out of the folder")

    def test_a_blob_that_is_itself_a_link(self, tmp_path: Path) -> None:
        snapshot = write_hugging_face(tmp_path / "repo" / "snapshots" / "0123", TINY_MOE)
        blob = tmp_path / "repo" / "blobs" / "0123"
        blob.parent.mkdir()
        (snapshot / WEIGHTS).rename(tmp_path / "outside")
        blob.symlink_to(tmp_path / "outside")
        (snapshot / WEIGHTS).symlink_to("../../blobs/0123")

        refused(snapshot, WEIGHTS, "leads out of the folder")

    def test_a_link_to_itself(self, folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / WEIGHTS).symlink_to(WEIGHTS)

        refused(folder, WEIGHTS)

    @pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
    def test_a_fifo_that_nobody_writes_to(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

        refused(folder, name, "not a regular file")

    def test_a_socket(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / WEIGHTS).unlink()
        monkeypatch.chdir(folder)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(WEIGHTS)

            refused(folder, WEIGHTS)

    def test_a_directory_in_place_of_a_file(self, folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / WEIGHTS).mkdir()

        refused(folder, WEIGHTS, "not a regular file")


class TestFolder:
    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        refused(tmp_path / "nowhere", str(tmp_path / "nowhere"), "No such file")

    def test_a_file_in_place_of_the_folder(self, folder: Path) -> None:
        refused(folder / WEIGHTS, str(folder / WEIGHTS), "Not a directory")

    def test_a_folder_without_permission(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def deny(path: object) -> list[str]:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "listdir", deny)

        refused(folder, str(folder), "Permission denied")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        refused(tmp_path, str(tmp_path), "no weights found")

    def test_weights_without_a_configuration(self, folder: Path) -> None:
        (folder / "config.json").unlink()

        refused(folder, "config.json", "No such file")

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("pytorch_model.bin", "convert it to safetensors"),
            ("pytorch_model-00001-of-00002.bin", "convert it to safetensors"),
            ("consolidated.00.pth", "convert it to safetensors"),
            ("consolidated.00.pt", "convert it to safetensors"),
            ("model.ckpt", "convert it to safetensors"),
            ("mixtral-8x7b.Q4_K_M.gguf", "original safetensors"),
        ],
    )
    def test_only_weights_of_another_kind(self, folder: Path, name: str, hint: str) -> None:
        (folder / WEIGHTS).rename(folder / name)

        refused(folder, name, hint)

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("adapter_config.json", "merge it"),
            ("quantize_config.json", "quantised"),
            ("quant_config.json", "quantised"),
        ],
    )
    def test_adapters_and_quantised_weights(self, folder: Path, name: str, hint: str) -> None:
        write_json(folder / name, {})

        refused(folder, name, hint)


class TestConfigFile:
    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"[]",
            b"null",
            b'{"hidden_size": 64, "hidden_size": 32}',
            b'{"moe": {"top_k": 2, "top_k": 1}}',
            b'{"rms_norm_eps": NaN}',
            b'{"rope_theta": -Infinity}',
            b'\xef\xbb\xbf{"hidden_size": 64}',
            '{"hidden_size": 64}'.encode("utf-16"),
            b'{"hidden_size": ' + b"9" * 10_000 + b"}",
            b"[" * 500_000,
            b'{"a":' * 150_000 + b"1" + b"}" * 150_000,
        ],
        ids=[
            "empty",
            "list",
            "null",
            "repeated key",
            "repeated inner key",
            "NaN",
            "Infinity",
            "byte order mark",
            "UTF-16",
            "10,000 digits",
            "deep list",
            "deep object",
        ],
    )
    @pytest.mark.parametrize("layout", ["config.json", "params.json"])
    def test_text_that_is_not_plain_json(self, layout: str, text: bytes, tmp_path: Path) -> None:
        is_ours = layout == "params.json"
        folder = (write_consolidated if is_ours else write_hugging_face)(tmp_path, TINY_MOE)
        (folder / layout).write_bytes(text)

        refused(folder, layout, "JSON")

    def test_more_than_a_megabyte(self, folder: Path) -> None:
        (folder / "config.json").write_bytes(b" " * (100 << 20))

        refused(folder, "config.json", "larger than 1048576 bytes")

    def test_a_git_lfs_pointer(self, folder: Path) -> None:
        (folder / "config.json").write_text("version https://git-lfs.github.com/spec/v1\n")

        refused(folder, "config.json", "git lfs pull")

    def test_a_value_that_cannot_be_served_names_file_and_key(self, folder: Path) -> None:
        edit_json(folder / "config.json", lambda config: config.update(num_local_experts="8"))

        refused(folder, "config.json: num_local_experts: got '8'", error=ConfigError)

    def test_a_value_in_params_json_names_file_and_key(self, tmp_path: Path) -> None:
        folder = write_consolidated(tmp_path, TINY_MOE)
        edit_json(folder / "params.json", lambda params: params.update(n_kv_heads=3))

        refused(folder, "params.json: n_kv_heads: got 3", error=ConfigError)

    def test_quantised_weights(self, folder: Path) -> None:
        quantised = {"quantization_config": {"quant_method": "awq", "bits": 4}}
        edit_json(folder / "config.json", lambda config: config.update(quantised))

        refused(folder, "config.json: quantization_config", error=ConfigError)


@pytest.mark.parametrize("name", ["config.json", INDEX, FIRST])
def test_random_damage_is_refused_or_harmless_and_never_anything_else(
    sharded: Path, name: str
) -> None:
    choice = random.Random(0)
    content = (sharded / name).read_bytes()
    text_end = min(len(content), 4096)

    for _ in range(100):
        damaged = bytearray(content)
        start = choice.randrange(text_end)
        damaged[start : start + choice.randrange(3)] = choice.choice(
            [b"", b"0", b"-1", b"1e400", b"null", b"[]", b'"', b",", b"\\u0000", b"\xff", b"NaN"]
        )
        (sharded / name).write_bytes(damaged)
        try:
            open_checkpoint(sharded)
        except ModelError as error:
            assert len(str(error)) < 1000
