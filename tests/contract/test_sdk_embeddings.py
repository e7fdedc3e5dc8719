"""OpenAI's client gets embeddings, as floats and as base64, from every kind that has them."""

from __future__ import annotations

import base64
import struct

import openai
import pytest

from tests.contract.places import Place
from tests.contract.sdk import Sdk
from tests.real import BASE, Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXTS = ["What is the capital of Italy?", "Rome", ""]


async def test_floats_and_base64_are_the_same_numbers(fake: Place, fake_sdk: Sdk) -> None:
    floats = await fake_sdk.ask("embeddings.create", model=fake.embeds, input=TEXTS[:2], encoding_format="float")
    packed = await fake_sdk.ask("embeddings.create", model=fake.embeds, input=TEXTS[:2], encoding_format="base64")
    for one, other in zip(floats.data, packed.data, strict=True):
        raw = base64.b64decode(other.embedding)
        assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == pytest.approx(one.embedding, rel=1e-6)


async def test_the_clients_own_default_works(fake: Place, fake_sdk: Sdk) -> None:
    """It asks for base64 and decodes it itself."""
    answer = await fake_sdk.ask("embeddings.create", model=fake.embeds, input=TEXTS[0])
    (one,) = answer.data
    assert all(isinstance(value, float) for value in one.embedding)
    assert sum(value * value for value in one.embedding) == pytest.approx(1, rel=1e-5)


async def test_they_come_in_order_under_the_asked_name_and_are_counted(fake: Place, fake_sdk: Sdk) -> None:
    answer = await fake_sdk.ask("embeddings.create", model=fake.embeds, input=TEXTS)
    assert [one.index for one in answer.data] == [0, 1, 2]
    alone = await fake_sdk.ask("embeddings.create", model=fake.embeds, input=TEXTS[1])
    assert alone.data[0].embedding == answer.data[1].embedding
    assert answer.model == fake.embeds
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


async def test_they_are_as_long_as_asked(fake: Place, fake_sdk: Sdk) -> None:
    answer = await fake_sdk.ask("embeddings.create", model=fake.embeds, input=TEXTS[1], dimensions=4)
    assert len(answer.data[0].embedding) == 4


@pytest.mark.engine
@pytest.mark.timeout(420)
@pytest.mark.parametrize("sdk_of", [openai.OpenAI, openai.AsyncOpenAI])
async def test_a_model_without_them_says_so(
    real: Served, sdk_of: type[openai.OpenAI] | type[openai.AsyncOpenAI]
) -> None:
    async with Sdk.open(sdk_of, real.gateway) as sdk:
        with pytest.raises(openai.NotFoundError, match="has no embeddings") as caught:
            await sdk.ask("embeddings.create", model=BASE, input="text")
        assert caught.value.code == "unsupported_endpoint"
