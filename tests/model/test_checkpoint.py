import dataclasses
import json
import mmap
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint.load import open_checkpoint
from model.checkpoint.names import expected_shapes, expert_names, router_names
from model.checkpoint.parts import half_split
from model.config import ModelConfig
from model.errors import CheckpointError, ConfigError, MissingTensor
from tests.checkpoints import (
    TINY_DENSE,
    TINY_MOE,
    interleaved,
    params,
    random_tensors,
    write_consolidated,
    write_hugging_face,
    write_json,
)

MODELS = pytest.mark.parametrize("config", [TINY_MOE, TINY_DENSE], ids=["moe", "dense"])


def load_all(folder: Path, dtype: str = "float32") -> dict[str, Tensor]:
    checkpoint = open_checkpoint(folder)
    return checkpoint.tensors(expected_shapes(checkpoint.config), dtype)


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@MODELS
@pytest.mark.parametrize("shards", [1, 3])
def test_both_layouts_give_the_tensors_that_were_written(
    config: ModelConfig, shards: int, tmp_path: Path
) -> None:
    theirs = write_hugging_face(tmp_path / "theirs", config, seed=5, shards=shards)
    mistral = write_consolidated(tmp_path / "mistral", config, seed=5, shards=shards)

    assert open_checkpoint(theirs).config == config
    assert open_checkpoint(mistral).config == config
    assert_equal(load_all(theirs), random_tensors(config, seed=5))
    assert_equal(load_all(mistral), random_tensors(config, seed=5))


def test_tied_embeddings_need_no_output_matrix(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY_DENSE, tied_embeddings=True)
    theirs = write_hugging_face(tmp_path / "theirs", config)
    mistral = write_consolidated(tmp_path / "mistral", config)

    assert "output.weight" not in load_all(theirs)
    assert "output.weight" not in load_all(mistral)


def test_experts_and_router_share_the_tensors_between_them() -> None:
    experts = expert_names(TINY_MOE, range(TINY_MOE.num_experts))
    router = router_names(TINY_MOE)

    assert not set(experts) & set(router)
    assert set(experts) | set(router) == set(expected_shapes(TINY_MOE))
    assert expert_names(TINY_MOE, [2])[:3] == [
        "layers.0.experts.2.w1.weight",
        "layers.0.experts.2.w2.weight",
        "layers.0.experts.2.w3.weight",
    ]
    assert router_names(TINY_DENSE) == list(expected_shapes(TINY_DENSE))


def test_half_split_puts_the_second_of_each_pair_into_the_second_half() -> None:
    rows = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0], [11.0], [12.0], [13.0]])

    split = half_split(rows, head_dim=4)

    assert split.flatten().tolist() == [0.0, 2.0, 1.0, 3.0, 10.0, 12.0, 11.0, 13.0]


def test_attention_scores_are_the_same_in_both_rotary_conventions() -> None:
    head_dim, position = 8, 3
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, head_dim, 5, generator=generator)
    hidden = torch.randn(5, generator=generator)
    angles = position * 10_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)

    def neighbours(x: Tensor) -> Tensor:
        turned = torch.view_as_complex(x.view(-1, 2)) * torch.polar(torch.ones(4), angles)
        return torch.view_as_real(turned).flatten()

    def halves(x: Tensor) -> Tensor:
        cos, sin = angles.cos().repeat(2), angles.sin().repeat(2)
        return x * cos + torch.cat((-x[4:], x[:4])) * sin

    theirs = neighbours(query @ hidden) @ (key @ hidden)
    ours = halves(half_split(query, head_dim) @ hidden) @ (half_split(key, head_dim) @ hidden)

    torch.testing.assert_close(ours, theirs)


def test_half_split_undoes_what_the_writer_does() -> None:
    weight = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))

    assert torch.equal(half_split(interleaved("wq.weight", weight, 16), 16), weight)


def test_the_first_mixtral_release_stacks_experts_by_rows(tmp_path: Path) -> None:
    wanted = random_tensors(TINY_MOE, seed=1)
    write_consolidated(tmp_path, TINY_MOE, seed=1)
    stored = load_file(tmp_path / "consolidated.safetensors")
    for layer in range(TINY_MOE.num_layers):
        old = f"layers.{layer}.block_sparse_moe."
        experts = f"layers.{layer}.feed_forward.experts."
        stored[old + "gate.weight"] = stored.pop(f"layers.{layer}.feed_forward.gate.weight")
        for name in ("w1", "w2", "w3"):
            parts = [stored.pop(f"{experts}{expert}.{name}.weight") for expert in range(8)]
            rows = [part.T if name == "w2" else part for part in parts]
            stored[old + name] = torch.cat(rows)
    save_file(stored, tmp_path / "consolidated.safetensors")

    assert_equal(load_all(tmp_path), wanted)


def test_buffers_of_old_transformers_are_ignored(tmp_path: Path) -> None:
    write_hugging_face(tmp_path, TINY_DENSE)
    stored = load_file(tmp_path / "model.safetensors")
    for layer in range(TINY_DENSE.num_layers):
        stored[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(stored, tmp_path / "model.safetensors")

    assert_equal(load_all(tmp_path), random_tensors(TINY_DENSE, seed=0))


def test_hugging_face_files_win_when_a_folder_holds_both_layouts(tmp_path: Path) -> None:
    write_hugging_face(tmp_path, TINY_MOE, seed=1)
    write_consolidated(tmp_path, TINY_MOE, seed=2)

    assert_equal(load_all(tmp_path), random_tensors(TINY_MOE, seed=1))


def test_pickles_and_code_beside_safetensors_are_left_alone(tmp_path: Path) -> None:
    write_hugging_face(tmp_path, TINY_MOE)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    (tmp_path / "modeling_mixtral.py").write_text("raise SystemExit")
    write_json(tmp_path / "generation_config.json", {"eos_token_id": 10**9, "max_length": -1})

    assert_equal(load_all(tmp_path), random_tensors(TINY_MOE, seed=0))


def test_a_request_to_run_code_is_logged_and_not_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_hugging_face(tmp_path, TINY_MOE)
    config = json.loads((tmp_path / "config.json").read_text())
    code = {"auto_map": {"AutoConfig": "evil.Config"}, "trust_remote_code": True}
    write_json(tmp_path / "config.json", config | code)
    (tmp_path / "evil.py").write_text("raise SystemExit")

    open_checkpoint(tmp_path)

    assert f"checkpoint={tmp_path} ignored=auto_map" in caplog.text
    assert f"checkpoint={tmp_path} ignored=trust_remote_code" in caplog.text


def test_a_hub_cache_snapshot_of_links_into_blobs_opens(tmp_path: Path) -> None:
    snapshot = write_hugging_face(tmp_path / "repo" / "snapshots" / "0123abcd", TINY_MOE)
    blobs = tmp_path / "repo" / "blobs"
    blobs.mkdir()
    for number, name in enumerate(("config.json", "model.safetensors")):
        (snapshot / name).rename(blobs / f"{number:040}")
        (snapshot / name).symlink_to(f"../../blobs/{number:040}")

    assert_equal(load_all(snapshot), random_tensors(TINY_MOE, seed=0))


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("asked", ["bfloat16", "float16", "float32"])
def test_any_supported_dtype_is_converted_to_the_one_asked_for(
    stored: str, asked: str, tmp_path: Path
) -> None:
    write_consolidated(tmp_path, TINY_DENSE, dtype=stored)
    wanted = random_tensors(TINY_DENSE, seed=0)

    found = load_all(tmp_path, asked)

    assert open_checkpoint(tmp_path).config.dtype == stored
    for name, tensor in wanted.items():
        as_stored = tensor.to(getattr(torch, stored))
        assert torch.equal(found[name], as_stored.to(getattr(torch, asked)))


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_hugging_face(tmp_path, TINY_MOE))
    names = expert_names(TINY_MOE, [0])
    told: list[tuple[int, int]] = []

    tensors = checkpoint.tensors(names, "float32", progress=lambda *done: told.append(done))

    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    assert len(told) == len(names)
    assert told[-1] == (num_bytes, num_bytes)


def test_unknown_names_and_dtypes_are_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_hugging_face(tmp_path, TINY_MOE))

    with pytest.raises(MissingTensor, match="layers.3.experts.0.w1.weight"):
        checkpoint.tensors(["layers.3.experts.0.w1.weight"], "float32")
    with pytest.raises(ConfigError, match="dtype: got 'int8'"):
        checkpoint.tensors(["norm.weight"], "int8")


class TestDigest:
    def test_equal_copies_have_equal_digests(self, tmp_path: Path) -> None:
        one = write_hugging_face(tmp_path / "one", TINY_MOE)
        two = write_hugging_face(tmp_path / "two", TINY_MOE)

        assert open_checkpoint(one).digest == open_checkpoint(two).digest
        assert re.fullmatch("[0-9a-f]{64}", open_checkpoint(one).digest)

    def test_other_weights_or_another_configuration_change_it(self, tmp_path: Path) -> None:
        config = dataclasses.replace(TINY_MOE, rope_theta=2e6)
        folders = [
            write_hugging_face(tmp_path / "one", TINY_MOE, seed=0),
            write_hugging_face(tmp_path / "two", TINY_MOE, seed=1),
            write_hugging_face(tmp_path / "three", config, seed=0),
            write_hugging_face(tmp_path / "four", TINY_MOE, seed=0, dtype="bfloat16"),
        ]

        assert len({open_checkpoint(folder).digest for folder in folders}) == len(folders)


class TestMapping:
    # Experts of 3 MiB, so that pages which the kernel maps around a touched one do not count.
    BIG = dataclasses.replace(
        TINY_MOE, dim=256, hidden_dim=1024, num_layers=1, num_heads=2, vocab_size=64
    )

    def test_stored_dtype_on_cpu_is_a_view_into_the_file(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(write_hugging_face(tmp_path, TINY_MOE))

        first = checkpoint.tensors(["output.weight"], "float32")["output.weight"]
        again = checkpoint.tensors(["output.weight"], "float32")["output.weight"]

        assert first.data_ptr() == again.data_ptr()

    def test_loading_two_experts_touches_only_their_pages(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(write_hugging_face(tmp_path, self.BIG))
        file = tmp_path / "model.safetensors"
        slack = 1 << 20

        tensors = checkpoint.tensors(expert_names(self.BIG, [2, 5]), "float32")
        resident_before = resident_bytes(file)
        for tensor in tensors.values():
            tensor.sum()
        resident_after = resident_bytes(file)

        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        assert resident_before < slack
        assert num_bytes <= resident_after + slack
        assert resident_after < num_bytes + slack
        assert file.stat().st_size > 3 * num_bytes

    def test_writing_to_a_tensor_does_not_reach_the_file(self, tmp_path: Path) -> None:
        folder = write_hugging_face(tmp_path, TINY_MOE)
        before = (folder / "model.safetensors").read_bytes()

        load_all(folder)["norm.weight"].zero_()

        assert (folder / "model.safetensors").read_bytes() == before

    def test_tensors_stay_valid_when_the_file_goes(self, tmp_path: Path) -> None:
        folder = write_hugging_face(tmp_path, TINY_MOE)
        tensors = load_all(folder)

        (folder / "model.safetensors").unlink()

        assert_equal(tensors, random_tensors(TINY_MOE, seed=0))

    def test_a_file_that_changed_since_it_was_opened_is_refused(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(write_hugging_face(tmp_path / "one", TINY_MOE, seed=0))
        other = write_hugging_face(tmp_path / "two", TINY_MOE, seed=1)
        (other / "model.safetensors").rename(tmp_path / "one" / "model.safetensors")

        with pytest.raises(CheckpointError, match="model.safetensors: has changed"):
            checkpoint.tensors(["norm.weight"], "float32")

    def test_descriptors_are_returned_with_the_last_tensor(self, tmp_path: Path) -> None:
        folder = write_hugging_face(tmp_path, TINY_MOE, shards=3)
        before = len(os.listdir("/proc/self/fd"))

        tensors = load_all(folder)
        del tensors

        assert len(os.listdir("/proc/self/fd")) == before

    def test_an_unpadded_header_costs_a_copy_and_nothing_else(self, tmp_path: Path) -> None:
        folder = write_hugging_face(tmp_path, TINY_MOE)
        file = folder / "model.safetensors"
        content = file.read_bytes()
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        odd = header.rstrip() + b" " * (1 - len(header.rstrip()) % 2)
        file.write_bytes(len(odd).to_bytes(8, "little") + odd + content[8 + len(header) :])

        assert_equal(load_all(folder), random_tensors(TINY_MOE, seed=0))

    def test_a_file_larger_than_memory_opens(self, tmp_path: Path) -> None:
        config = dataclasses.replace(
            TINY_DENSE, vocab_size=1 << 20, dim=1 << 15, num_layers=1, tied_embeddings=True
        )
        write_json(tmp_path / "params.json", params(config))
        write_sparse(tmp_path / "consolidated.safetensors", expected_shapes(config))

        checkpoint = open_checkpoint(tmp_path)
        embeddings = checkpoint.tensors(["tok_embeddings.weight"], "float32")

        assert embeddings["tok_embeddings.weight"][-1, -1] == 0.0
        assert embeddings["tok_embeddings.weight"].nbytes == 1 << 37


def resident_bytes(file: Path) -> int:
    """Give how much of a mapped file this process holds in memory."""
    maps = Path("/proc/self/smaps").read_text()
    blocks = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", maps)
    found = [re.search(r"^Rss: +(\d+) kB$", block, re.M) for block in blocks if str(file) in block]
    return sum(int(match[1]) << 10 for match in found if match)


def write_sparse(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a safetensors file of zeros that takes no room on the disk."""
    header: dict[str, object] = {}
    position = 0
    for name, shape in shapes.items():
        stop = position + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % mmap.PAGESIZE)
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + position)
