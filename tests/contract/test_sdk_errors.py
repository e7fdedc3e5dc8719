"""Each kind of error is the exception that OpenAI's client has for it, whichever kind of upstream it came from."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.contract.places import Place
from tests.contract.sdk import Sdk, text_of
from tests.fakes.faults import closed_port
from tests.gateway import Running

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK: list[Any] = [{"role": "user", "content": "What is the capital of Italy?"}]


def assert_formed(error: openai.APIStatusError) -> None:
    """OpenAI's form, with a request id to ask the operator about."""
    assert set(error.body) == {"message", "type", "param", "code"}
    assert error.body["message"]
    assert error.request_id
    assert error.response.headers["content-type"] == "application/json"


async def failing(sdk: Sdk, kind: type[openai.APIStatusError], **body: Any) -> openai.APIStatusError:
    """The error of a chat, the same whole and streamed."""
    with pytest.raises(openai.APIStatusError) as streamed:
        await sdk.stream("chat.completions.create", **{"messages": ASK, **body})
    with pytest.raises(openai.APIStatusError) as whole:
        await sdk.ask("chat.completions.create", **{"messages": ASK, **body})
    for caught in (streamed, whole):
        assert type(caught.value) is kind, caught.value
        assert_formed(caught.value)
    assert whole.value.body == streamed.value.body
    return whole.value


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.InternalServerError),  # the gateway's key was refused, not the client's
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (501, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_an_upstreams_status(fake: Place, fake_sdk: Sdk, status: int, kind: type[openai.APIStatusError]) -> None:
    error = await failing(fake_sdk, kind, model=f"status-{status}")
    if status in (401, 500, 501):
        assert error.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "a"}]}, "messages"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"tools": {}}, "tools"),
    ],
)
async def test_a_mistake_in_the_request(place: Place, sdk: Sdk, body: dict[str, Any], param: str) -> None:
    error = await failing(sdk, openai.BadRequestError, model=place.chat, **body)
    assert error.param == param


async def test_a_model_that_does_not_exist(sdk: Sdk) -> None:
    error = await failing(sdk, openai.NotFoundError, model="no-such-model")
    assert error.code == "model_not_found"
    assert "no-such-model" in error.message


async def test_a_prompt_that_is_too_long(place: Place, sdk: Sdk) -> None:
    words = {"vllm": 2500, "openai": 6000, "ollama": 5000}[place.kind]
    if place.server is not None and place.kind != "ollama":
        return  # these fakes have no context
    error = await failing(
        sdk, openai.BadRequestError, model=place.chat, messages=[{"role": "user", "content": "word " * words}]
    )
    assert "context" in error.message


async def test_a_key_that_is_not_known(place: Place, sdk_of: Any) -> None:
    for key in ("sk-wrong", place.gateway.admin_key):
        async with Sdk.open(sdk_of, place.gateway, api_key=key) as sdk:
            error = await failing(sdk, openai.AuthenticationError, model=place.chat)
            assert error.code == "invalid_api_key"
            assert key not in str(error.body)


@pytest.mark.parametrize("name", ["priority", "chat_template", "kv_transfer_params", "request_id"])
async def test_a_parameter_without_the_right_to_it(place: Place, sdk: Sdk, name: str) -> None:
    error = await failing(sdk, openai.PermissionDeniedError, model=place.chat, extra_body={name: "x"})
    assert name in error.message


async def test_an_answer_that_takes_longer_than_the_client_waits(fake: Place, sdk_of: Any) -> None:
    async with Sdk.open(sdk_of, fake.gateway, timeout=0.3) as sdk:
        with pytest.raises(openai.APITimeoutError):
            await sdk.ask("chat.completions.create", model="hangs", messages=ASK)
        with pytest.raises(openai.APITimeoutError):
            await sdk.stream("chat.completions.create", model="hangs", messages=ASK)


async def test_a_gateway_that_is_not_there(sdk_of: Any) -> None:
    with closed_port() as url:
        async with Sdk.open(sdk_of, Running(url.removesuffix("/v1"))) as sdk:
            with pytest.raises(openai.APIConnectionError):
                await sdk.ask("models.list")


@pytest.mark.parametrize("model", ["cut", "errs"])
async def test_a_stream_that_breaks(fake: Place, fake_sdk: Sdk, model: str) -> None:
    """What came before is kept, then the client raises: never does it take the part for the whole."""
    chunks: list[Any] = []
    with pytest.raises(openai.APIError) as caught:
        await fake_sdk.stream("chat.completions.create", into=chunks, model=model, messages=ASK)
    assert text_of(chunks) == "One two"
    assert not isinstance(caught.value, openai.APIStatusError)
    assert caught.value.body["code"] in ("upstream_cut", "upstream_status")
    assert caught.value.message


async def test_an_answer_that_breaks_before_it_is_whole(fake: Place, fake_sdk: Sdk) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        await fake_sdk.ask("chat.completions.create", model="cut", messages=ASK)
    assert_formed(caught.value)
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_the_client_tries_again_by_itself_what_is_worth_it(fake: Place, sdk_of: Any) -> None:
    assert fake.server is not None
    async with Sdk.open(sdk_of, fake.gateway, max_retries=1) as sdk:
        for model, attempts in (("status-429", 2), ("status-503", 1), ("status-500", 1), ("status-400", 1)):
            before = len(fake.server.ledger)
            with pytest.raises(openai.APIStatusError):
                await sdk.ask("chat.completions.create", model=model, messages=ASK)
            assert len(fake.server.ledger) - before == attempts, model
