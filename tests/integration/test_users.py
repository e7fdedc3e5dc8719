"""Who is behind a key: told by a signature or by a trusted network, and otherwise not at all."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests import wire
from tests.gateway import CLIENT_KEY
from tests.integration.peopled import OTHER_KEY, SIGNED, TRUSTED, Peopled, peopled
from tests.people import ADA, BOB, SECRET, claims, handmade, plain, signed, token

HEAD = {"alg": "HS256", "typ": "JWT"}


def now(seconds: int = 0) -> int:
    """Unix seconds, so many from now: what was now when this file was read may be long ago."""
    return int(time.time()) + seconds


#: Tokens that prove nothing, and a word of the sentence that says why.
FORGED: dict[str, tuple[Any, str]] = {
    "another secret": (lambda: token(secret="another-secret-of-32-characters-and-more"), "not signed with"),
    "expired": (lambda: token(exp=now(-120)), "expired"),
    "issued tomorrow": (lambda: token(iat=now(86_400)), "future"),
    "not valid before tomorrow": (lambda: token(nbf=now(86_400)), "future"),
    "no algorithm": (lambda: jwt.encode(claims(), None, algorithm="none"), "not signed with"),
    "no algorithm, in capitals": (lambda: handmade({"alg": "NONE"}, claims()), "not signed with"),
    "a stronger algorithm": (lambda: jwt.encode(claims(), SECRET * 2, algorithm="HS512"), "not signed with"),
    "an algorithm that is a list": (lambda: handmade({"alg": ["HS256"]}, claims()), "not"),
    "no algorithm at all": (lambda: handmade({"typ": "JWT"}, claims()), "not"),
    "a critical extension": (lambda: handmade({**HEAD, "crit": ["exp"]}, claims()), "not valid"),
    "another issuer": (lambda: token(iss="elsewhere"), "issuer"),
    "no issuer": (lambda: token(iss=None), "not valid"),
    "no end": (lambda: token(exp=None), "not valid"),
    "an end that is a text": (lambda: handmade(HEAD, claims(exp=str(now(300)))), "not valid"),
    "an end that never comes": (lambda: handmade(HEAD, b'{"sub":"a","iss":"open-webui","exp":Infinity}'), "not valid"),
    "an end that is no number": (lambda: handmade(HEAD, claims(exp=[1])), "not valid"),
    "nobody": (lambda: token(sub=None), "not valid"),
    "an empty name": (lambda: token(sub=""), "not valid"),
    "a number for a name": (lambda: handmade(HEAD, claims(sub=7)), "not valid"),
    "a name with a line break": (lambda: token(sub="ada\nreason=completed"), "not valid"),
    "a name without an end": (lambda: token(sub="a" * 257), "not valid"),
    "a role that is a list": (lambda: handmade(HEAD, claims(role=["admin"])), "not valid"),
    "groups that are a text": (lambda: handmade(HEAD, claims(groups="admin")), "not valid"),
    "for somebody else": (lambda: token(aud="another-service"), "not valid"),
    "a payload that is no object": (lambda: handmade(HEAD, [1]), "not valid"),
    "a payload that is no JSON": (lambda: handmade(HEAD, b"{"), "not valid"),
    "a head of brackets": (lambda: handmade(b"[" * 1000, claims()), "not valid"),
    "a payload of brackets": (lambda: handmade(HEAD, b"[" * 1000), "not valid"),
    "nothing": (lambda: "", "not valid"),
    "no token": (lambda: "Bearer x", "not valid"),
    "only dots": (lambda: "..", "not valid"),
    "a token that was cut": (lambda: token()[:-5], "not"),
    "a changed payload": (lambda: ".".join((token().split(".")[0], *token(BOB).split(".")[1:2], "x" * 43)), "not"),
    "far too much": (lambda: token(email="a" * 10_000), "longer"),
}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Peopled]:
    async with peopled(tmp_path, SIGNED) as running:
        yield running


async def test_two_people_behind_one_key_are_told_apart_in_the_access_log(gateway: Peopled) -> None:
    for person in (ADA, BOB, ADA):
        line = await gateway.logged(await gateway.ask(signed(person)))
        assert (line["key"], line["user"], line["status"]) == ("tester", person["sub"], 200)
    assert (await gateway.logged(await gateway.ask()))["user"] == ""
    for personal in ("example.org", "Ünï", "Ada"):
        assert personal not in gateway.said()


@pytest.mark.parametrize("kind", FORGED)
async def test_a_token_that_proves_nothing_is_refused_and_never_taken_for_none(gateway: Peopled, kind: str) -> None:
    make, why = FORGED[kind]
    reply = await gateway.ask(("x-openwebui-user-jwt", make()))
    assert (reply.status, reply.error["code"]) == (401, "invalid_user_token"), reply
    assert why in reply.error["message"]
    assert not gateway.upstream.ledger


async def test_the_sentence_repeats_nothing_of_the_token(gateway: Peopled) -> None:
    reply = await gateway.ask(signed(sub="canary-sub", iss="canary-iss"))
    assert b"canary" not in reply.body
    assert SECRET.encode() not in reply.body


async def test_a_token_is_asked_for_its_proof_on_every_route_of_a_key(gateway: Peopled) -> None:
    forged = ("x-openwebui-user-jwt", token(secret=SECRET[::-1]))
    for path in ("/v1/models", "/models", "/v1/models/base"):
        reply = await wire.get(gateway.url, path, [("authorization", f"Bearer {CLIENT_KEY}"), forged])
        assert reply.status == 401, path


async def test_two_tokens_are_one_too_many(gateway: Peopled) -> None:
    reply = await gateway.ask(signed(ADA), signed(BOB))
    assert (reply.status, reply.error["code"]) == (400, "duplicate_header")


async def test_clocks_may_differ_a_little(gateway: Peopled) -> None:
    assert (await gateway.ask(signed(iat=now(20), nbf=now(20)))).status == 200
    assert (await gateway.ask(signed(exp=int(time.time()) - 5))).status == 200


async def test_plain_headers_count_for_nothing_where_users_are_signed(tmp_path: Path) -> None:
    async with peopled(tmp_path, {**SIGNED, "roles": {"admin": ["priority"]}}) as gateway:
        reply = await gateway.ask(*plain(ADA), priority=1)
        assert (reply.status, reply.error["code"]) == (403, "permission_denied")
        assert (await gateway.logged(await gateway.ask(*plain(ADA))))["user"] == ""
        assert (await gateway.logged(await gateway.ask(*plain(ADA), signed(BOB))))["user"] == BOB["sub"]


async def test_nothing_in_a_header_counts_where_nobody_is_trusted(tmp_path: Path) -> None:
    async with peopled(tmp_path, {}) as gateway:
        for headers in (plain(ADA), [signed(ADA)], [("x-openwebui-user-jwt", "x")]):
            assert (await gateway.logged(await gateway.ask(*headers)))["user"] == ""


async def test_plain_headers_are_believed_in_a_trusted_network(tmp_path: Path) -> None:
    async with peopled(tmp_path, {**TRUSTED, "roles": {"admin": ["priority"]}}) as gateway:
        assert (await gateway.logged(await gateway.ask(*plain(BOB))))["user"] == BOB["sub"]
        assert (await gateway.ask(*plain(BOB), priority=1)).status == 403
        assert (await gateway.ask(*plain(ADA), priority=1)).status == 200
        encoded = await gateway.ask(("x-openwebui-user-id", "z%C3%BCrich-1"))
        assert (await gateway.logged(encoded))["user"] == "zürich-1"
        assert (await gateway.logged(await gateway.ask(("x-openwebui-user-id", ""))))["user"] == ""
        for broken in ("a%0Ab", "%ff", "a" * 300, "%E2%80%AEroot"):
            reply = await gateway.ask(("x-openwebui-user-id", broken))
            assert (reply.status, reply.error["code"]) == (400, "invalid_header"), broken


async def test_a_program_may_name_its_users_in_the_body(tmp_path: Path) -> None:
    async with peopled(tmp_path, {}) as gateway:
        assert (await gateway.logged(await gateway.ask(user="u-1", safety_identifier="s")))["user"] == "u-1"
        assert (await gateway.logged(await gateway.ask(safety_identifier="s-1")))["user"] == "s-1"
        for broken in ("a\nb", "\x1b[2J", "u" * 257, "\u202eroot"):
            reply = await gateway.ask(user=broken)
            assert (reply.status, reply.error["param"]) == (400, "user"), broken


async def test_a_name_in_the_body_is_never_that_of_somebody_who_is_verified(gateway: Peopled) -> None:
    assert (await gateway.logged(await gateway.ask(user=ADA["sub"])))["user"] == f"tester/{ADA['sub']}"
    assert (await gateway.logged(await gateway.ask(signed(BOB), user=ADA["sub"])))["user"] == BOB["sub"]


async def test_a_key_may_demand_that_each_request_proves_who_asks(tmp_path: Path) -> None:
    async with peopled(tmp_path, SIGNED, keys=({"users": "required"}, {})) as gateway:
        for headers, body in (((), {}), (plain(ADA), {}), ((), {"user": ADA["sub"]})):
            reply = await gateway.ask(*headers, **body)
            assert (reply.status, reply.error["code"]) == (401, "user_required")
            assert "X-OpenWebUI-User-Jwt" in reply.error["message"]
        assert (await gateway.ask(signed(ADA))).status == 200
        assert (await gateway.ask(key=OTHER_KEY)).status == 200
        assert await gateway.models() == await gateway.models(signed(ADA)) != []
        assert (await gateway.post("/models/unload", {"model": "base"})).status == 401


async def test_a_role_of_open_webui_may_bring_rights_beyond_those_of_the_key(tmp_path: Path) -> None:
    async with peopled(tmp_path, {**SIGNED, "roles": {"admin": ["adapters", "priority"]}}) as gateway:

        async def press(*headers: tuple[str, str]) -> int:
            return (await gateway.post("/models/unload", {"model": "base"}, headers)).status

        assert await press(signed(ADA)) == 400  # let in: it is no adapter
        assert await press(signed(BOB)) == await press() == await press(*plain(ADA)) == 403
        assert (await gateway.ask(signed(ADA), priority=1)).status == 200
        assert (await gateway.ask(signed(BOB), priority=1)).status == 403


async def test_a_role_may_be_bound_to_some_models(tmp_path: Path) -> None:
    async with peopled(tmp_path, {**SIGNED, "models": {"user": ["base", "support-*"]}}) as gateway:
        reply = await gateway.ask(signed(BOB), model="lab")
        assert (reply.status, reply.error["code"], reply.error["param"]) == (403, "model_not_allowed", "model")
        assert reply.error["message"] == (
            "You may not use the model 'lab': it is not among those that people with the role 'user' may use. "
            "Choose another one, or ask whoever runs this gateway."
        )
        assert not gateway.upstream.ledger
        assert (await gateway.ask(signed(BOB), model="support-bot")).status == 200
        assert (await gateway.ask(signed(ADA), model="lab")).status == 200
        assert (await gateway.ask(model="lab")).status == 200  # the key's own program


async def test_all_users_of_a_key_see_one_list_of_models(tmp_path: Path) -> None:
    users = {**SIGNED, "models": {"user": ["base"], "pending": []}}
    teams = [{"name": "support", "members": ["*@support.example.org"], "models": ["support-*"]}]
    async with peopled(tmp_path, users, teams=teams) as gateway:
        lists = [await gateway.models(*who) for who in ((), (signed(ADA),), (signed(BOB),), (signed(role="pending"),))]
        assert lists == [["base", "support-bot", "lab"]] * 4
        for model in lists[0]:
            assert (await gateway.ask(signed(role="pending"), model=model)).status == 403
        assert (await gateway.ask(signed(role="pending"), model="nothing")).status == 404


async def test_a_background_task_stays_within_what_the_person_may_use(tmp_path: Path) -> None:
    users = {**SIGNED, "models": {"user": ["base"]}}
    async with peopled(tmp_path, users, openwebui={"tasks": {"*": "lab"}}) as gateway:
        for person in (ADA, BOB):
            assert (await gateway.ask(signed(person), ("x-openwebui-task", "tags_generation"))).status == 200
        assert [body["model"] for body in gateway.bodies] == ["lab", "base"]
