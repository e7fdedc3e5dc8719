"""Teams: who is in one, and what that changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.peopled import OTHER_KEY, SIGNED, TRUSTED, peopled
from tests.people import ADA, BOB, plain, signed

TEAMS = [
    {"name": "lab", "members": ["*@lab.example.org"], "groups": ["research*"]},
    {"name": "support", "members": ["*@SUPPORT.example.org", ADA["sub"]], "models": ["support-*", "base"]},
]


async def test_people_are_in_the_first_team_that_they_are_a_member_of_and_else_in_their_keys(tmp_path: Path) -> None:
    async with peopled(tmp_path, SIGNED, teams=TEAMS, keys=({}, {"team": "support"})) as gateway:
        eve = {"sub": "e-1", "email": "eve@example.org", "name": "Eve", "role": "user"}
        for person, team in ((ADA, "lab"), (BOB, "support"), (eve, "")):
            assert (await gateway.logged(await gateway.ask(signed(person))))["team"] == team
        for person, team in ((ADA, "lab"), (eve, "support")):
            assert (await gateway.logged(await gateway.ask(signed(person), key=OTHER_KEY)))["team"] == team
        assert (await gateway.logged(await gateway.ask(key=OTHER_KEY)))["team"] == "support"


async def test_a_group_comes_before_a_membership_and_counts_only_where_it_is_to_be_believed(tmp_path: Path) -> None:
    groups = ("x-openwebui-groups", "all%2C staff,research%C3%BC")
    for name, users, headers, team in (
        ("claim", SIGNED, [signed(BOB, groups=["x", "research"])], "lab"),
        ("unsigned header", SIGNED, [signed(BOB), groups], "support"),
        ("trusted header", {**SIGNED, **TRUSTED}, [signed(BOB), groups], "lab"),
        ("a claim outranks it", {**SIGNED, **TRUSTED}, [signed(BOB, groups=[]), groups], "support"),
        ("only the groups of a token's person", {**SIGNED, **TRUSTED}, [*plain(ADA), groups], ""),
        ("plain", TRUSTED, [*plain(BOB), groups], "lab"),
        ("nobody", TRUSTED, [groups], ""),
    ):
        async with peopled(tmp_path / name, users, teams=TEAMS) as gateway:
            assert (await gateway.logged(await gateway.ask(*headers)))["team"] == team, name


async def test_a_person_is_refused_a_model_that_the_team_may_not_use(tmp_path: Path) -> None:
    async with peopled(tmp_path, SIGNED, teams=TEAMS) as gateway:
        reply = await gateway.ask(signed(BOB), model="lab")
        assert (reply.status, reply.error["code"]) == (403, "model_not_allowed")
        assert "the team 'support' may use" in reply.error["message"]
        assert (await gateway.logged(reply))["reason"] == "auth"
        assert (await gateway.ask(signed(ADA), model="lab")).status == 200
        pressed = await gateway.post("/models/unload", {"model": "lab"}, [signed(BOB)])
        assert pressed.status == 403


async def test_for_a_key_in_a_team_there_is_nothing_but_what_both_may_use(tmp_path: Path) -> None:
    keys = ({"team": "support", "models": ["lab", "support-*"]}, {})
    async with peopled(tmp_path, SIGNED, teams=TEAMS, keys=keys) as gateway:
        assert await gateway.models() == await gateway.models(signed(ADA)) == ["support-bot"]
        for model in ("lab", "base", "nothing"):
            for who in ((), (signed(ADA),)):
                reply = await gateway.ask(*who, model=model)
                assert (reply.status, reply.error["code"]) == (404, "model_not_found")
        assert (await gateway.ask(model="support-bot")).status == 200
        assert len(await gateway.models(key=OTHER_KEY)) == 3


@pytest.mark.parametrize("user", [ADA["sub"], ADA["email"]])
async def test_nobody_joins_a_team_by_a_name_in_the_body(tmp_path: Path, user: str) -> None:
    async with peopled(tmp_path, {}, teams=TEAMS) as gateway:
        line = await gateway.logged(await gateway.ask(user=user))
        assert (line["user"], line["team"]) == (user, "")
