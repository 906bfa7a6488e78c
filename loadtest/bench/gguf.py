"""A checkpoint in llama.cpp's own format, made once by llama.cpp's own converter."""

import subprocess
from pathlib import Path


class ConversionFailed(Exception):
    """The converter ended with a fault; its words are in the log."""


def ensure_gguf(checkpoint: Path, script: Path | None, python: Path | None, log: Path) -> Path:
    """Give the bfloat16 file beside the checkpoint's folder, converting unless it is there.

    Args:
        script: `convert_hf_to_gguf.py`.
        python: one with gguf, transformers and torch.

    Raises:
        ConversionFailed: it could not be converted.
    """
    target = checkpoint.with_name(f"{checkpoint.name}.gguf")
    if target.exists():
        return target
    if script is None or python is None:
        raise ConversionFailed("no --llama-convert")
    unfinished = checkpoint.with_name(f"{checkpoint.name}.unfinished.gguf")
    command: list[str | Path]
    command = [python, script, checkpoint, "--outtype", "bf16", "--outfile", unfinished]
    with log.open("ab") as output:
        done = subprocess.run(command, stdout=output, stderr=output, check=False)
    if done.returncode != 0:
        raise ConversionFailed(f"the converter ended with status {done.returncode}")
    unfinished.rename(target)
    return target
