"""S-19: tenants of one vLLM do not find each other's prompts in its prefix cache."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.peopled import OTHER_KEY, SIGNED, Peopled, peopled
from tests.people import ADA, BOB, Header, signed

TEAMS = [{"name": "lab", "members": ["*@lab.example.org"]}]
TWO: tuple[dict[str, Any], ...] = ({}, {})
SECRET = {"cache_secret": "5a1t-0b9d7c3e-of-all-replicas"}


async def salt(gateway: Peopled, *headers: Header, **more: Any) -> Any:
    """What the engine was sent as salt, None for nothing."""
    assert (await gateway.ask(*headers, **more)).status == 200
    return gateway.bodies[-1].get("cache_salt")


async def test_every_body_that_goes_to_a_vllm_carries_the_salt_of_its_tenant(tmp_path: Path) -> None:
    prompts = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
        "/v1/completions": {"prompt": "hello"},
        "/v1/embeddings": {"input": "hello"},
    }
    async with peopled(tmp_path, SIGNED, keys=TWO) as gateway:
        for path, prompt in prompts.items():
            for stream in {False, path != "/v1/embeddings"}:
                for own in ({}, {"cache_salt": "mine"}, {"cache_salt": ""}, {"cache_salt": None}):
                    body = {"model": "base", **prompt, "stream": stream, **own}
                    assert (await gateway.post(path, body)).status == 200
        salts = [body["cache_salt"] for body in gateway.bodies]
        assert len(salts) == 20
        assert set(salts) == {await salt(gateway), await salt(gateway, cache_salt="mine")}
        assert all(isinstance(each, str) and len(each) == 32 for each in salts)


async def test_tenants_have_different_salts_and_no_salt_of_a_client_makes_them_equal(tmp_path: Path) -> None:
    async with peopled(tmp_path, SIGNED, keys=TWO, teams=TEAMS) as gateway:
        key, other = await salt(gateway), await salt(gateway, key=OTHER_KEY)
        team, same_team = await salt(gateway, signed(ADA)), await salt(gateway, signed(ADA), key=OTHER_KEY)
        stranger = await salt(gateway, signed(BOB))
        assert team == same_team  # a team is one tenant, whatever key it comes by
        assert key == stranger  # who is in no team is of the key's
        assert len({key, other, team}) == 3
        stolen = {await salt(gateway, key=OTHER_KEY, cache_salt=each) for each in (key, team, "team lab", "key tester")}
        assert not stolen & {key, team}
        assert len(stolen) == 4


async def test_a_salt_must_be_a_text(tmp_path: Path) -> None:
    async with peopled(tmp_path, {}, keys=TWO) as gateway:
        reply = await gateway.ask(cache_salt=7)
        assert (reply.status, reply.error["param"]) == (400, "cache_salt")


async def test_people_are_tenants_of_their_own_where_the_file_says_so(tmp_path: Path) -> None:
    async with peopled(tmp_path, {**SIGNED, "cache": "user"}) as gateway:
        ada, bob, nobody = [await salt(gateway, *who) for who in ((signed(ADA),), (signed(BOB),), ())]
        assert len({ada, bob, nobody}) == 3
        assert await salt(gateway, user=ADA["sub"]) not in {ada, bob, nobody}
        assert await salt(gateway, signed(ADA)) == ada


@pytest.mark.parametrize(
    ("why", "settings"),
    [
        ("one key", {"users": {}}),
        ("shared", {"users": {"cache": "shared"}, "keys": TWO, "teams": TEAMS}),
        ("no vLLM", {"users": {}, "keys": TWO, "kind": "openai"}),
    ],
)
async def test_where_there_is_nothing_to_part_bodies_are_as_they_came(
    tmp_path: Path, why: str, settings: dict[str, Any]
) -> None:
    async with peopled(tmp_path, **settings) as gateway:
        assert await salt(gateway) is None
        own = await salt(gateway, cache_salt="mine")
        assert own == (None if why == "no vLLM" else "mine")


async def test_no_setting_for_parameters_gives_a_client_the_choice(tmp_path: Path) -> None:
    parameters = {"rename": {"salt": "cache_salt"}, "allow": "*"}
    async with peopled(tmp_path, {}, keys=TWO, upstream={"parameters": parameters}) as gateway:
        assert await salt(gateway, salt="chosen") == await salt(gateway)


async def test_gateways_before_one_engine_agree_by_their_secret(tmp_path: Path) -> None:
    async def salts(users: dict[str, Any]) -> Iterable[Any]:
        found = []
        for name in ("a", "b"):
            async with peopled(tmp_path / name, users, keys=TWO) as gateway:
                found.append(await salt(gateway))
        return found

    first, second = await salts(SECRET)
    assert first == second
    first, second = await salts({})
    assert first != second
