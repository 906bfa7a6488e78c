"""The server cell: some streams at once, over HTTP, each with a prompt of its own."""

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import sentencepiece

from loadtest.bench.answer import Values
from loadtest.bench.cells import ITL_S, TOKENS_PER_S, TTFT_S, Cell
from loadtest.streaming_client import Measurement, NoTokens, StreamFailure, StreamingClient

WARM_UP_STREAMS = 2
WARM_UP_TOKENS = 4
SHORTEST_WORD = 3
WORD_MARK = "\u2581"


class WrongLength(Exception):
    """A server did not generate as many tokens as it was asked for."""


def is_ready(url: str) -> bool:
    """Whether the server generates, not merely listens."""
    client = StreamingClient(url)
    try:
        client.complete(_body(client.first_model(), "word", 1))
    except NoTokens:
        return True
    except StreamFailure:
        return False
    finally:
        client.close()
    return True


def measure_server(url: str, cell: Cell, tokenizer: Path, seed: int) -> Values:
    """Warm up, then ask for every stream at once.

    Args:
        seed: of the prompts, which are the same for everybody who is asked with it.

    Raises:
        StreamFailure: a stream failed.
        WrongLength: an answer is too short or too long.
    """
    prompts = prompts_of(tokenizer, cell.batch + WARM_UP_STREAMS, cell.prompt_tokens, seed)
    _ask(url, prompts[cell.batch :], WARM_UP_TOKENS)
    measured, seconds = _ask(url, prompts[: cell.batch], cell.new_tokens)
    return values_of(measured, seconds, cell.new_tokens)


def values_of(measured: Sequence[Measurement], seconds: float, num_tokens: int) -> Values:
    """Sum up: one rate, a first latency for each stream, all latencies between tokens."""
    for each in measured:
        if each.num_tokens != num_tokens:
            raise WrongLength(f"{each.num_tokens} of {num_tokens} tokens")
    return {
        TOKENS_PER_S: [len(measured) * num_tokens / seconds],
        TTFT_S: [each.ttft_s for each in measured],
        ITL_S: [latency_s for each in measured for latency_s in each.itl_s],
    }


def prompts_of(tokenizer: Path, number: int, num_tokens: int, seed: int) -> list[str]:
    """Draw texts of exactly so many tokens, the one that begins a text among them.

    Made of words that are one token each; a text that comes out otherwise is drawn again.
    """
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    all_pieces = (pieces.id_to_piece(token_id) for token_id in range(pieces.vocab_size()))
    words = [piece[1:] for piece in all_pieces if _is_word(piece)]
    rng = random.Random(seed)
    prompts: list[str] = []
    while len(prompts) < number:
        text = " ".join(rng.choices(words, k=num_tokens - 1))
        if len(pieces.encode(text)) == num_tokens - 1:
            prompts.append(text)
    return prompts


def _is_word(piece: str) -> bool:
    word = piece[1:]
    is_plain = word.isascii() and word.isalpha()
    return piece.startswith(WORD_MARK) and is_plain and len(word) >= SHORTEST_WORD


def _ask(url: str, prompts: Sequence[str], num_tokens: int) -> tuple[list[Measurement], float]:
    """Send all prompts at the same moment; give what came, and the seconds until all was there."""
    start = threading.Barrier(len(prompts))

    def stream(prompt: str) -> tuple[Measurement, float, float]:
        client = StreamingClient(url)
        try:
            body = _body(client.first_model(), prompt, num_tokens)
            start.wait()
            began_s = time.perf_counter()
            return client.complete(body), began_s, time.perf_counter()
        except StreamFailure:
            start.abort()
            raise
        finally:
            client.close()

    with ThreadPoolExecutor(len(prompts)) as threads:
        answers = list(threads.map(stream, prompts))
    seconds = max(ended_s for _, _, ended_s in answers) - min(began_s for _, began_s, _ in answers)
    return [measurement for measurement, _, _ in answers], seconds


def _body(model: str, prompt: str, num_tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": num_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
