"""OpenAI's client lists models and finds each again, whatever its name."""

from __future__ import annotations

import openai
import pytest

from tests.contract.places import ODD, SCENARIOS, Place
from tests.contract.sdk import Sdk
from tests.real import PIRATE, Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK = [{"role": "user", "content": "What is the capital of Italy?"}]


async def test_all_models_are_listed(place: Place, sdk: Sdk) -> None:
    listed = {model.id: model for model in (await sdk.ask("models.list")).data}
    assert place.chat in listed
    assert all(model.object == "model" and model.created > 0 and model.owned_by for model in listed.values())


async def test_each_listed_model_is_found_by_its_name(place: Place, sdk: Sdk) -> None:
    for model in (await sdk.ask("models.list")).data:
        assert await sdk.ask("models.retrieve", model.id) == model


@pytest.mark.parametrize("name", ODD)
async def test_a_name_with_unusual_characters_is_listed_found_and_answers(
    fake: Place, fake_sdk: Sdk, name: str
) -> None:
    assert name in [model.id for model in (await fake_sdk.ask("models.list")).data]
    assert (await fake_sdk.ask("models.retrieve", name)).id == name
    answer = await fake_sdk.ask("chat.completions.create", model=name, messages=ASK)
    assert answer.model == name
    chunks = await fake_sdk.stream("chat.completions.create", model=name, messages=ASK)
    assert {chunk.model for chunk in chunks} == {name}


@pytest.mark.parametrize("name", ["absent", "m/", "M", "org/model", "../models", "m?x=1", "org/model:7b@q4_K_M "])
async def test_a_model_that_is_not_there_is_not_found(fake_sdk: Sdk, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await fake_sdk.ask("models.retrieve", name)
    assert caught.value.code == "model_not_found"


async def test_nothing_is_listed_that_is_not_offered(fake: Place, fake_sdk: Sdk) -> None:
    assert {model.id for model in (await fake_sdk.ask("models.list")).data} == set(SCENARIOS)


@pytest.mark.engine
@pytest.mark.timeout(420)
@pytest.mark.parametrize("sdk_of", [openai.OpenAI, openai.AsyncOpenAI])
async def test_an_adapters_exact_version_is_found_by_its_name(
    real: Served, sdk_of: type[openai.OpenAI] | type[openai.AsyncOpenAI]
) -> None:
    async with Sdk.open(sdk_of, real.gateway) as sdk:
        raw = await sdk.ask("chat.completions.with_raw_response.create", model=PIRATE, messages=ASK, max_tokens=2)
        version = raw.headers["x-gateway-adapter"]
        assert version.startswith(f"{PIRATE}@")
        assert (await sdk.ask("models.retrieve", version)).id == version
        answer = await sdk.ask("chat.completions.create", model=version, messages=ASK, max_tokens=2)
        assert answer.model == version
