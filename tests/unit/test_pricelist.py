"""What third parties take is what the package says, and never less."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from gateway.controlplane.pricelist import price_list
from gateway.domain import money
from gateway.domain.usage import Usage as Used

OPENAI = "https://api.openai.com/v1"
TOKENS = st.integers(0, 10**6)


@given(st.sampled_from(["gpt-5-mini", "gpt-4o", "gpt-4.1-nano"]), TOKENS, TOKENS, TOKENS)
def test_a_request_costs_what_the_package_says(model: str, prompt: int, completion: int, cached: int) -> None:
    cached = min(cached, prompt)
    price = price_list("auto", OPENAI).price(model)
    assert price is not None
    usage = Usage(input_tokens=prompt, output_tokens=completion, cache_read_tokens=cached)
    theirs = calc_price(usage, model, provider_id="openai").total_price * 10**6
    assert abs(price.cost(Used(prompt, completion, cached)) - theirs) <= Decimal("0.5")


@pytest.mark.parametrize("provider", [provider.id for provider in get_snapshot().providers])
def test_nothing_is_cheaper_than_the_package_says_whatever_the_hour_and_however_long(provider: str) -> None:
    prices = price_list(provider, "")
    (listed,) = (each for each in get_snapshot().providers if each.id == provider)
    for model in listed.models:
        price = prices.price(model.id)
        if price is None:
            continue
        for hour in (0, 8, 17):
            for tokens in (1000, 10**6):
                usage = Usage(input_tokens=tokens, output_tokens=tokens)
                now = datetime.now(UTC).replace(hour=hour)
                try:
                    theirs = calc_price(usage, model.id, provider_id=provider, genai_request_timestamp=now).total_price
                except (LookupError, ValueError):
                    continue  # what is paid by other units
                assert price.cost(Used(tokens, tokens)) >= theirs * 10**6 - 1, (model.id, hour, tokens, price)


def test_a_price_says_by_which_list_it_is_and_is_read_back() -> None:
    price = price_list("openai", "").price("gpt-5-mini")
    assert price is not None
    assert price.words.endswith(f" genai-prices={version('genai-prices')}")
    assert money.from_words(price.words) == price


def test_what_the_package_does_not_know_or_counts_in_something_else_has_no_price() -> None:
    prices = price_list("openai", "")
    assert prices.price("a-model-of-our-own") is None
    assert prices.price("whisper-1") is None, "by the hour of sound"
    with pytest.raises(LookupError):
        price_list("nobody", "")
    with pytest.raises(LookupError):
        price_list("auto", "http://127.0.0.1:8001/v1")
