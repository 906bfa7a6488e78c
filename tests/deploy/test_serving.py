"""The whole application on Ray Serve: topologies, clients, faults. One cluster for all of it."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from mistralai.client import Mistral

from cluster.handle import Client, connect
from model.checkpoint.load import open_checkpoint
from model.checkpoint.names import expected_shapes
from tests.checkpoints import write_serving_checkpoint
from tests.running import build as build_local
from tests.running import generate
from tests.serving import deploy, ray_with_serve, stream_ids, wait_until

PROMPTS = [[1, 40, 7, 300, 12], [1, 5], [1, *range(20, 60)]]
NUM_TOKENS = 48
LONG = 250
GREEDY = {"model": "tiny", "temperature": 0, "ignore_eos": True, "max_tokens": NUM_TOKENS}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_serving_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="module")
def long_golden(checkpoint: Path) -> list[list[int]]:
    """Greedy ids of each prompt, by the model in this process, without Ray or links."""
    opened = open_checkpoint(checkpoint)
    tensors = opened.tensors(expected_shapes(opened.config), "float32")
    transformer, experts = build_local(opened.config, tensors)
    return [generate(transformer, experts, prompt, LONG) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def golden(long_golden: list[list[int]]) -> list[list[int]]:
    return [token_ids[:NUM_TOKENS] for token_ids in long_golden]


@pytest.fixture(scope="module")
def url(checkpoint: Path) -> Iterator[str]:
    with ray_with_serve() as url:
        deploy(checkpoint, expert_hosts=1)
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return connect()


def all_greedy(url: str) -> list[list[int]]:
    """Greedy ids of every prompt, asked for at the same time."""
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(lambda prompt: stream_ids(url, prompt=prompt, **GREEDY)[0], PROMPTS))


def hosts_of(client: Client, num_hosts: int) -> list[dict[str, Any]]:
    """Status of the hosts, once there are so many and each holds its share of the experts."""

    def have_settled() -> bool:
        hosts = client.status()["expert_hosts"]
        return len(hosts) == num_hosts and all(host["experts"] for host in hosts)

    wait_until(have_settled, 60)
    hosts: list[dict[str, Any]] = client.status()["expert_hosts"]
    return hosts


@pytest.mark.parametrize("num_hosts", [1, 2, 3, 5, 8])
def test_tokens_do_not_depend_on_the_number_of_hosts(
    url: str, client: Client, checkpoint: Path, golden: list[list[int]], num_hosts: int
) -> None:
    deploy(checkpoint, expert_hosts=num_hosts)
    hosts_of(client, num_hosts)

    assert all_greedy(url) == golden


def test_hosts_that_are_scaled_away_under_load_hand_over_their_experts(
    url: str, client: Client, checkpoint: Path, long_golden: list[list[int]]
) -> None:
    def scale_down() -> None:
        deploy(checkpoint, expert_hosts=2)

    answers = stream_while(url, 4, scale_down)

    assert answers == [(long_golden[index % len(PROMPTS)], True) for index in range(4)]
    hosts_of(client, 2)


def test_two_routers_share_the_hosts(
    url: str, client: Client, checkpoint: Path, golden: list[list[int]]
) -> None:
    deploy(checkpoint, expert_hosts=2, routers=2)
    hosts_of(client, 2)

    answers = [all_greedy(url) for _ in range(3)]

    assert answers == [golden] * 3
    assert len(client.status()["routers"]) == 2


def test_the_openai_client_chats_streams_and_reads_errors(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    [model] = client.models.list().data
    ask: Any = {
        "model": model.id,
        "messages": [{"role": "user", "content": "Hello"}],
        "temperature": 0,
        "max_tokens": 12,
        "logprobs": True,
        "top_logprobs": 2,
    }

    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True))

    assert whole.usage is not None and whole.usage.completion_tokens == 12
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**{**ask, "temperature": 3})


def test_the_mistral_client_chats_and_streams(url: str) -> None:
    with Mistral(api_key="none", server_url=url) as client:
        models = client.models.list()
        ask: Any = {
            "model": models.data[0].id,
            "messages": [{"role": "user", "content": "Hello"}],
            "temperature": 0,
            "max_tokens": 12,
        }

        whole = client.chat.complete(**ask)
        pieces = [event.data.choices[0].delta.content for event in client.chat.stream(**ask)]

    assert "".join(str(piece) for piece in pieces if piece) == whole.choices[0].message.content


def test_the_python_handle_generates_sync_and_async(
    client: Client, golden: list[list[int]]
) -> None:
    options = {"temperature": 0, "ignore_eos": True, "max_tokens": NUM_TOKENS}

    whole = client.generate(PROMPTS[0], **options)
    pieces = list(client.stream(PROMPTS[0], **options))
    later = asyncio.run(client.agenerate(PROMPTS[0], **options))

    assert list(whole.token_ids) == golden[0] and whole.finish_reason == "length"
    assert "".join(piece.text for piece in pieces) == whole.text == later.text
    with pytest.raises(ValueError, match="temperature"):
        client.generate("Hello", temperature=-1)


def test_ready_means_a_token_went_through(url: str) -> None:
    assert requests.get(f"{url}/ready", timeout=30).json() == {"status": "ready"}


def test_a_client_that_leaves_frees_its_place(url: str, client: Client) -> None:
    body = {**GREEDY, "prompt": PROMPTS[0], "max_tokens": 400, "stream": True}
    with requests.post(f"{url}/v1/completions", json=body, stream=True, timeout=60) as response:
        next(response.iter_lines(chunk_size=1))

    def is_idle() -> bool:
        routers = client.status()["routers"]
        return all(r["running"] == r["waiting"] == r["kv_tokens_used"] == 0 for r in routers)

    wait_until(is_idle, 20)


def stream_while(
    url: str, num_streams: int, act: Callable[[], None]
) -> list[tuple[list[int], bool]]:
    """Run streams side by side and act once every one of them is under way."""
    progress = [0] * num_streams

    def stream(index: int) -> tuple[list[int], bool]:
        def count(num_tokens: int) -> None:
            progress[index] = num_tokens

        body = {**GREEDY, "max_tokens": LONG, "prompt": PROMPTS[index % len(PROMPTS)]}
        return stream_ids(url, count, **body)

    with ThreadPoolExecutor(num_streams) as pool:
        streams = [pool.submit(stream, index) for index in range(num_streams)]
        wait_until(lambda: all(progress), 30)
        assert max(progress) < LONG, "too late: a stream is over already"
        act()
        return [stream.result() for stream in streams]


def test_killing_an_expert_host_changes_no_token_of_eight_streams(
    url: str, client: Client, long_golden: list[list[int]]
) -> None:
    victim = hosts_of(client, 2)[0]

    answers = stream_while(url, 8, lambda: os.kill(victim["pid"], signal.SIGKILL))

    assert answers == [(long_golden[index % len(PROMPTS)], True) for index in range(8)]
    survivors = hosts_of(client, 2)
    assert victim["id"] not in {host["id"] for host in survivors}


def test_killing_the_router_resumes_its_streams(
    url: str, client: Client, long_golden: list[list[int]]
) -> None:
    pids = [router["pid"] for router in client.status()["routers"]]

    def kill_one() -> None:
        os.kill(pids[0], signal.SIGKILL)

    answers = stream_while(url, 4, kill_one)

    assert answers == [(long_golden[index % len(PROMPTS)], True) for index in range(4)]


def test_tcp_links_give_the_same_tokens_and_a_full_queue_is_refused(
    url: str, client: Client, checkpoint: Path, golden: list[list[int]]
) -> None:
    deploy(checkpoint, expert_hosts=2, link="tcp", max_running=2, max_waiting=2)
    hosts_of(client, 2)
    assert all_greedy(url) == golden

    body = {**GREEDY, "prompt": PROMPTS[0], "max_tokens": 200}
    with ThreadPoolExecutor(12) as pool:
        post = partial(requests.post, f"{url}/v1/completions", json=body, timeout=120)
        responses = [future.result() for future in [pool.submit(post) for _ in range(12)]]

    refused = [response for response in responses if response.status_code == 503]
    assert {response.status_code for response in responses} == {200, 503}
    assert all(response.headers["retry-after"] for response in refused)
    assert all_greedy(url) == golden
