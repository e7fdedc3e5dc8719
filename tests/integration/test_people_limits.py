"""Limits and budgets of people and teams behind one key, of keys made at run time, and what outlives a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.cli.keys import merged_budgets
from gateway.cli.output import Failure
from tests.gateway import CLIENT_KEY
from tests.integration.keyed import chat, keyed
from tests.integration.peopled import SIGNED, Peopled, peopled
from tests.people import ADA, BOB, signed
from tests.wire import Reply

EVE = {"sub": "eve-1", "email": "eve@lab.example.org", "name": "Eve", "role": "user"}


def one_request(per: str = "day") -> dict[str, Any]:
    """A budget that any request uses up."""
    return {"budgets": [{"tokens": 1, "per": per}]}


def used_up(reply: Reply) -> bool:
    return reply.status == 429 and reply.error["code"] == "budget_exceeded"


async def answered(gateway: Peopled, person: dict[str, Any]) -> None:
    assert (await gateway.ask(signed(person), max_tokens=1)).status == 200


async def test_two_people_behind_one_key_have_budgets_of_their_own(tmp_path: Path) -> None:
    limits = {"defaults": {"user": {"budgets": [{"tokens": 60, "per": "day"}]}}, "users": {EVE["sub"]: one_request()}}
    async with peopled(tmp_path, SIGNED, limits=limits) as gateway:
        await answered(gateway, ADA)
        refused = await gateway.ask(signed(ADA), max_tokens=60)
        assert used_up(refused)
        assert "your budget, 60 tokens a day" in refused.error["message"]
        await answered(gateway, BOB)
        assert used_up(await gateway.ask(signed(EVE), max_tokens=1)), "her own is smaller"


async def test_a_team_is_limited_together(tmp_path: Path) -> None:
    team = {"name": "lab", "members": ["*@lab.example.org"], "limits": {"requests_per_minute": 2}}
    async with peopled(tmp_path, SIGNED, teams=[team]) as gateway:
        await answered(gateway, ADA)
        await answered(gateway, EVE)
        refused = await gateway.ask(signed(ADA))
        assert refused.status == 429
        assert "You have used the 2 requests a minute of the team 'lab'" in refused.error["message"]
        await answered(gateway, BOB)


async def test_what_was_spent_is_spent_after_a_restart(tmp_path: Path) -> None:
    limits = {"defaults": {"user": {"budgets": [{"tokens": 60, "per": "total"}]}}}
    async with peopled(tmp_path, SIGNED, limits=limits) as gateway:
        await answered(gateway, ADA)
    async with peopled(tmp_path, SIGNED, limits=limits) as gateway:
        assert used_up(await gateway.ask(signed(ADA), max_tokens=60))
        assert (await gateway.ask(signed(BOB), max_tokens=20)).status == 200


async def test_a_key_that_is_made_at_run_time_has_the_limits_and_budgets_that_it_is_given(tmp_path: Path) -> None:
    async with keyed(tmp_path) as gateway:
        ran = await gateway.command(
            "keys",
            "create",
            "anna",
            "--rpm",
            1,
            "--concurrent",
            5,
            "--budget",
            "20.5/month",
            "--budget",
            "9tokens/month",
        )
        assert ran.returncode == 0, ran.stderr
        key = ran.stdout.strip()
        (row,) = [row for row in (await gateway.rows()).values() if row["name"] == "anna"]
        assert row["limits"] == {"requests_per_minute": 1, "tokens_per_minute": None, "concurrent": 5}
        assert row["budgets"] == [{"money": 20.5, "tokens": 9, "per": "month"}]
        refused = await gateway.post(key, chat(max_tokens=100))
        assert refused.status_code == 403, "money is counted, and the model has no price"
        assert refused.json()["error"]["code"] == "model_without_price"
        changed = await gateway.command("keys", "set", "anna", "--budget", "none")
        assert changed.returncode == 0, changed.stderr
        assert (await gateway.post(key, chat())).status_code == 200
        refused = await gateway.post(key, chat())
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "1 requests a minute of this key" in refused.json()["error"]["message"]
        shown = await gateway.command("keys", "show", "anna")
        assert "requests_per_minute=1" in shown.stdout
        assert (await gateway.post(CLIENT_KEY, chat())).status_code == 200, "another key"


async def test_limits_and_budgets_that_cannot_be_are_refused(tmp_path: Path) -> None:
    async with keyed(tmp_path) as gateway:
        for wrong in (
            {"limits": {"requests_per_minute": 0}},
            {"limits": {"requests_per_second": 1}},
            {"budgets": [{"per": "day"}]},
            {"budgets": [{"tokens": 1, "per": "week"}]},
            {"budgets": [{"tokens": 1, "per": "day"}, {"money": 1, "per": "day"}]},
        ):
            answer = await gateway.client.post("/admin/v1/keys", json={"name": "x", **wrong})
            assert answer.status_code == 400, (wrong, answer.text)
        assert all(row["source"] == "file" for row in (await gateway.rows()).values())


def test_budgets_are_written_as_amounts_of_periods() -> None:
    assert merged_budgets(["none"]) == []
    assert merged_budgets(["5/total", "1000tokens/day", "0.5/day"]) == [
        {"per": "total", "money": 5.0},
        {"per": "day", "tokens": 1000, "money": 0.5},
    ]
    for wrong in ("5", "5/week", "-1/day", "tokens/day", "1e9/day", "none/day"):
        with pytest.raises(Failure, match="is no budget"):
            merged_budgets([wrong])
    with pytest.raises(Failure, match="another one for money"):
        merged_budgets(["1/day", "2/day"])
