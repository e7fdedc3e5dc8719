"""Several gateways with one PostgreSQL: what was used on each is in every report, and in every budget that begins."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tests.integration.keyed import Keyed, chat
from tests.integration.test_shared_keys import is_ready, knows, replica, until
from tests.postgres import Server


async def used(gateway: Keyed) -> dict[str, dict[str, Any]]:
    """Name of a key → its row of the report."""
    return {row["name"]: row for row in (await gateway.call("GET", "usage?by=key"))["data"]}


async def has_all(gateway: Keyed, requests: int) -> bool:
    return (await used(gateway)).get("anna", {}).get("requests") == requests


async def test_a_report_of_any_gateway_has_what_was_used_on_all_and_a_budget_begins_with_it(
    postgres: Server, tmp_path: Path
) -> None:
    url = postgres.database()
    async with replica(tmp_path / "a", url) as first, replica(tmp_path / "b", url) as second:
        for gateway in (first, second):
            await until(partial(is_ready, gateway))
        made = await first.create("anna")
        key = made["key"]
        await until(partial(knows, second, made["id"]))
        for gateway in (first, first, second):
            assert (await gateway.post(key, chat())).status_code == 200
        for gateway in (first, second):
            await until(partial(has_all, gateway, 3))
        report = (await used(first))["anna"]
        assert (await used(second))["anna"] == report
        assert (await first.get(key, "/v1/usage/me?by=key")).json()["data"] == [report]
        # Nobody has counted a budget of this key so far: it begins with what was used on both.
        budget = {"tokens": report["prompt_tokens"] + report["completion_tokens"], "per": "total"}
        await second.call("PATCH", f"keys/{made['id']}", {"budgets": [budget]})
        refused = await second.post(key, chat())
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "budget_exceeded")
