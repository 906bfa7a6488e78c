"""The official clients read what the API writes."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import openai
import pytest
from mistralai.client import Mistral
from mistralai.client.errors import SDKError

from cluster.errors import EngineBusy, EngineStopped
from deploy.api.routes import create_app
from tests.deploy.fakes import MODEL, FakeBackend, event, playing, service

URL = "http://test"


def run_openai(backend: FakeBackend, test: Callable[[openai.AsyncOpenAI], Awaitable[None]]) -> None:
    async def main() -> None:
        transport = httpx.ASGITransport(app=create_app(service(backend)))
        async with httpx.AsyncClient(transport=transport) as http:
            client = openai.AsyncOpenAI(
                base_url=f"{URL}/v1", api_key="none", http_client=http, max_retries=0
            )
            await test(client)

    asyncio.run(main())


def run_mistral(backend: FakeBackend, test: Callable[[Mistral], Awaitable[None]]) -> None:
    async def main() -> None:
        transport = httpx.ASGITransport(app=create_app(service(backend)))
        async with httpx.AsyncClient(transport=transport) as http:
            await test(Mistral(server_url=URL, api_key="none", async_client=http))

    asyncio.run(main())


def test_openai_reads_a_chat() -> None:
    async def test(client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hi"}],
            max_completion_tokens=50,
            logprobs=True,
            top_logprobs=2,
            n=2,
            seed=7,
            stop=["never"],
            user="me",
        )

        assert [choice.message.content for choice in answer.choices] == ["Hello world"] * 2
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].logprobs is not None
        assert answer.choices[0].logprobs.content is not None
        assert answer.choices[0].logprobs.content[0].top_logprobs[0].token == " Hello"
        assert answer.usage is not None
        assert answer.usage.total_tokens == 15

    run_openai(FakeBackend(), test)


def test_openai_reads_a_chat_stream() -> None:
    async def test(client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]

        texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        assert "".join(texts) == "Hello world"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 3

    run_openai(FakeBackend(), test)


def test_openai_reads_texts_whole_and_streamed() -> None:
    async def test(client: openai.AsyncOpenAI) -> None:
        answer = await client.completions.create(
            model=MODEL, prompt=["a", "b"], logprobs=1, extra_body={"return_token_ids": True}
        )
        stream = await client.completions.create(model=MODEL, prompt="a", stream=True)

        assert [choice.text for choice in answer.choices] == [" Hello world"] * 2
        assert answer.choices[0].logprobs is not None
        assert answer.choices[0].logprobs.tokens == [" Hello", " world", "</s>"]
        assert answer.choices[0].model_extra is not None
        assert answer.choices[0].model_extra["token_ids"] == [22557, 1526, 2]
        assert "".join([chunk.choices[0].text async for chunk in stream]) == " Hello world"

    run_openai(FakeBackend(), test)


def test_openai_reads_the_models() -> None:
    async def test(client: openai.AsyncOpenAI) -> None:
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert (await client.models.retrieve(MODEL)).owned_by == "mixray"

    run_openai(FakeBackend(), test)


def test_openai_reads_errors() -> None:
    async def test(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=MODEL, messages=[])
        with pytest.raises(openai.NotFoundError) as not_found:
            await client.models.retrieve("nope")
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model=MODEL, input="hi")
        with pytest.raises(openai.InternalServerError) as busy:
            await client.completions.create(model=MODEL, prompt="a")

        assert (refused.value.param, refused.value.code) == ("messages", "empty_array")
        assert not_found.value.code == "model_not_found"
        assert busy.value.status_code == 503
        assert busy.value.code == "overloaded"

    run_openai(FakeBackend(playing(EngineBusy(9))), test)


def test_openai_sees_a_stream_that_fails() -> None:
    async def test(client: openai.AsyncOpenAI) -> None:
        stream = await client.completions.create(model=MODEL, prompt="a", stream=True)
        with pytest.raises(openai.APIError, match="shut down"):
            async for _ in stream:
                pass

    run_openai(FakeBackend(playing((event(5),), EngineStopped("shut down"))), test)


def test_mistral_reads_a_chat() -> None:
    async def test(client: Mistral) -> None:
        answer = await client.chat.complete_async(
            model=MODEL,
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "hi"},
            ],
            random_seed=7,
            safe_prompt=False,
            stop="never",
            max_tokens=9,
        )

        assert answer.choices[0].message is not None
        assert answer.choices[0].message.content == "Hello world"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens == 3

    run_mistral(FakeBackend(), test)


def test_mistral_reads_a_chat_stream() -> None:
    async def test(client: Mistral) -> None:
        stream = await client.chat.stream_async(
            model=MODEL, messages=[{"role": "user", "content": "hi"}]
        )
        deltas = [event.data.choices[0].delta.content or "" async for event in stream]

        assert "".join(str(delta) for delta in deltas) == "Hello world"

    run_mistral(FakeBackend(), test)


def test_mistral_reads_the_models() -> None:
    async def test(client: Mistral) -> None:
        models = await client.models.list_async()
        model = await client.models.retrieve_async(model_id=MODEL)

        assert models.data is not None
        assert [item.id for item in models.data] == [MODEL]
        assert model.max_context_length == 256

    run_mistral(FakeBackend(), test)


def test_mistral_reads_errors() -> None:
    async def test(client: Mistral) -> None:
        with pytest.raises(SDKError) as refused:
            await client.chat.complete_async(
                model="nope", messages=[{"role": "user", "content": "hi"}]
            )

        assert refused.value.status_code == 404
        assert "model_not_found" in refused.value.body

    run_mistral(FakeBackend(), test)
