"""What a request costs where the file names a list of prices, and not a price."""

from __future__ import annotations

from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

from genai_prices import Usage, calc_price

from tests import wire
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.gateway import ADMIN_KEY, Running, running_gateway
from tests.integration.ledger_rows import ledger_of, rows
from tests.wire import Reply

PLAIN, BOUND = "sk-plain-0123456789abcdef", "sk-bound-0123456789abcdef"
AUTH = {
    "admin_key": ADMIN_KEY,
    "keys": [
        {"name": "plain", "key": PLAIN},
        {"name": "bound", "key": BOUND, "budgets": [{"money": 100, "per": "day"}]},
    ],
}
MODELS = ("gpt-5-mini", "gpt-4o", "ours", "home")
OVERRIDES = {
    "gpt-4o": {"price": {"input": 100, "output": 200}},
    "home": {"price": {"gpu_hour": 3.6, "tokens_per_second": 100}},
}


async def chat(gateway: Running, model: str, key: str = PLAIN) -> Reply:
    body = {"model": model, "messages": [{"role": "user", "content": "one two three"}]}
    return await wire.post(gateway.url, "/v1/chat/completions", body, [("authorization", f"Bearer {key}")])


async def test_a_request_costs_what_the_list_says_and_what_the_file_says_counts_before_it(tmp_path: Path) -> None:
    async with OpenAIUpstream({name: Script((" a", " b", " c")) for name in MODELS}) as upstream:
        one: dict[str, Any] = {"name": "up", "kind": "openai", "base_url": upstream.url, "models": list(MODELS)}
        config = {"auth": AUTH, "upstreams": [{**one, "prices": "openai", "overrides": OVERRIDES}]}
        async with running_gateway(config, tmp_path) as gateway:
            for name in MODELS:
                assert (await chat(gateway, name)).status == 200
            assert (await chat(gateway, "gpt-5-mini", BOUND)).status == 200
            refused = await chat(gateway, "ours", BOUND)
    assert (refused.status, refused.error["code"]) == (403, "model_without_price")
    found = {row["model"]: row for row in rows(ledger_of(tmp_path)) if row["key"] == "plain"}
    listed = found["gpt-5-mini"]
    used = Usage(input_tokens=listed["prompt"], output_tokens=listed["completion"])
    theirs = calc_price(used, "gpt-5-mini", provider_id="openai").total_price * 10**6
    assert abs(listed["cost"] - theirs) <= Decimal("0.5")
    assert listed["price"].endswith(f" genai-prices={version('genai-prices')}")
    assert (found["gpt-4o"]["cost"], found["gpt-4o"]["price"]) == (3 * 100 + 3 * 200, "in=100 out=200")
    assert (found["home"]["cost"], found["home"]["price"]) == (
        6 * 10, "in=10 out=10 gpu_hour=3.6 tokens_per_second=100",
    )  # fmt: skip
    assert (found["ours"]["cost"], found["ours"]["price"]) == (0, "")
