"""The administration of adapters over HTTP: every route, every kind of mistake, each answer as it is documented."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import pytest

from gateway.api import openapi_admin
from tests.integration.administration import CHAT, Administered, administered, with_adapter

DOCUMENT = openapi_admin.administration("test")
ADAPTERS = "/admin/v1/adapters"


@pytest.fixture
async def gateway(tmp_path: Path):
    async with administered(tmp_path) as running:
        yield running


@pytest.fixture
async def admin(gateway: Administered):
    async with gateway.client() as client:
        yield client


def documented(answer: httpx2.Response, template: str) -> Any:
    """The answer's JSON, held against the schema that the document has for it."""
    operation = DOCUMENT["paths"][template][answer.request.method.lower()]
    described = operation["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json(), {**described, "components": DOCUMENT["components"]})
    return answer.json()


def refused(answer: httpx2.Response, status: int, param: str | None = None) -> str:
    """The message of a refusal in OpenAI's form."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    return str(error["message"])


async def test_the_first_version_is_what_the_name_points_to(admin):
    begun = await admin.post(ADAPTERS, json={"name": "pirate", "source": "hf://crew/pirate@main"})
    assert begun.status_code == 202
    done = documented(
        await admin.get(f"/admin/v1/imports/{documented(begun, ADAPTERS)['id']}"), "/admin/v1/imports/{id}"
    )
    assert (done["phase"], done["name"]) == ("Ready", "pirate")
    shown = documented(await admin.get(f"{ADAPTERS}/pirate"), ADAPTERS + "/{name}")
    assert shown["current"] == done["version"]
    listed = documented(await admin.get(ADAPTERS), ADAPTERS)
    assert [(row["name"], row["version"], row["weight"]) for row in listed["data"]] == [
        ("pirate", done["version"], 100)
    ]


async def test_an_archive_arrives_byte_for_byte_with_its_options(gateway, admin):
    archive = bytes(range(256)) * 12345  # several pieces
    begun = await admin.put(
        f"{ADAPTERS}/pirate/archive?pinned=true&load=lazy&upstreams=local,other&promote=true", content=archive
    )
    assert begun.status_code == 202
    assert documented(begun, ADAPTERS + "/{name}/archive")["version"] == hashlib.sha256(archive).hexdigest()[:12]
    shown = (await admin.get(f"{ADAPTERS}/pirate")).json()
    assert (shown["pinned"], shown["load"], shown["upstreams"]) == (True, "lazy", ["local", "other"])
    assert gateway.parts() == []


async def test_an_archive_may_be_larger_than_any_other_body(admin):
    megabyte = bytes(1 << 20)
    assert (await admin.put(f"{ADAPTERS}/pirate/archive", content=megabyte)).status_code == 202
    assert refused(await admin.post(ADAPTERS, content=megabyte), 413)
    assert refused(await admin.put(f"{ADAPTERS}/pirate/elsewhere", content=megabyte), 413)


async def test_an_archive_in_chunks_is_bounded_as_it_comes(gateway, admin):
    async def endless():
        while True:
            yield bytes(1 << 16)

    with pytest.raises(httpx2.HTTPError):  # it is cut off in the midst of what it sends, or reads the 413
        (await admin.put(f"{ADAPTERS}/pirate/archive", content=endless())).raise_for_status()
    async with asyncio.timeout(30):
        while gateway.parts():
            await asyncio.sleep(0.01)
    assert "pirate" not in gateway.adapters.records


async def test_promote_rollback_and_canary(gateway, admin):
    one, two, three = with_adapter(gateway, "pirate", b"1", b"2", b"3")
    moved = await admin.post(f"{ADAPTERS}/pirate/promote", json={"version": f"pirate@{two}"})
    assert documented(moved, ADAPTERS + "/{name}/promote")["current"] == two
    again = await admin.post(f"{ADAPTERS}/pirate/promote", json={"version": two})
    assert (again.status_code, again.json()["current"], again.json()["history"]) == (200, two, [one])
    split = await admin.post(f"{ADAPTERS}/pirate/canary", json={"version": three, "weight": 12.5})
    assert documented(split, ADAPTERS + "/{name}/canary")["canaries"] == [{"version": three, "weight": 12.5}]
    assert {row["version"]: row["weight"] for row in split.json()["versions"]} == {one: 0, two: 87.5, three: 12.5}
    ended = await admin.post(f"{ADAPTERS}/pirate/canary", json={"version": three, "weight": 0})
    assert ended.json()["canaries"] == []
    back = await admin.post(f"{ADAPTERS}/pirate/rollback")
    assert documented(back, ADAPTERS + "/{name}/rollback")["current"] == one
    assert "no version before" in refused(await admin.post(f"{ADAPTERS}/pirate/rollback"), 409)


async def test_promoting_what_is_not_ready_is_accepted_and_happens_later(gateway, admin):
    one = with_adapter(gateway, "pirate", b"1")[0]
    gateway.adapters.slow.add("*")
    two = with_adapter(gateway, "pirate", b"2")[1]
    moved = await admin.post(f"{ADAPTERS}/pirate/promote", json={"version": two})
    assert moved.status_code == 202
    shown = documented(moved, ADAPTERS + "/{name}/promote")
    assert (shown["current"], shown["next"]) == (one, two)
    gateway.adapters.settle()
    assert (await admin.get(f"{ADAPTERS}/pirate")).json()["current"] == two


async def test_settings_change_only_where_they_are_given(gateway, admin):
    with_adapter(gateway, "pirate", b"1")
    path = f"{ADAPTERS}/pirate"
    changed = await admin.patch(path, json={"pinned": True, "upstreams": ["local"]})
    assert documented(changed, ADAPTERS + "/{name}")["pinned"] is True
    changed = await admin.patch(path, json={"load": "lazy"})
    assert (changed.json()["pinned"], changed.json()["load"], changed.json()["upstreams"]) == (True, "lazy", ["local"])
    changed = await admin.patch(path, json={"load": None, "upstreams": None})
    assert (changed.json()["pinned"], changed.json()["load"], changed.json()["upstreams"]) == (True, None, None)


async def test_removing_a_version_and_then_the_adapter(gateway, admin):
    one, two = with_adapter(gateway, "pirate", b"1", b"2")
    template = ADAPTERS + "/{name}/versions/{version}"
    left = documented(await admin.delete(f"{ADAPTERS}/pirate/versions/{one}"), template)
    assert [row["version"] for row in left["versions"]] == [two]
    gone = documented(await admin.delete(f"{ADAPTERS}/pirate/versions/{two}"), template)
    assert gone == {"name": "pirate", "deleted": True}
    assert "no adapter pirate" in refused(await admin.get(f"{ADAPTERS}/pirate"), 404)
    with_adapter(gateway, "pirate", b"1", b"2")
    assert documented(await admin.delete(f"{ADAPTERS}/pirate"), ADAPTERS + "/{name}") == gone
    assert refused(await admin.delete(f"{ADAPTERS}/pirate"), 404)


async def test_load_answers_when_the_version_is_ready(gateway, admin):
    gateway.adapters.slow.add("*")
    version = with_adapter(gateway, "pirate", b"1")[0]
    asked = asyncio.create_task(admin.post(f"{ADAPTERS}/pirate/load"))
    await gateway.adapters.waiting.wait()
    assert not asked.done()
    gateway.adapters.settle()
    shown = documented(await asked, ADAPTERS + "/{name}/load")
    assert [row["phase"] for row in shown["versions"]] == ["Ready"]
    assert gateway.adapters.asked == [f"pirate@{version}"]


async def test_nobody_waits_for_a_load_when_the_client_has_left(gateway, admin):
    gateway.adapters.slow.add("*")
    with_adapter(gateway, "pirate", b"1")
    before = asyncio.all_tasks()
    with pytest.raises(httpx2.ReadTimeout):
        await admin.post(f"{ADAPTERS}/pirate/load", timeout=httpx2.Timeout(30, read=0.3))
    async with asyncio.timeout(30):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.01)


async def test_unload_takes_one_version_or_all(gateway, admin):
    one, two = with_adapter(gateway, "pirate", b"1", b"2")
    only = await admin.post(f"{ADAPTERS}/pirate/unload", json={"version": two})
    shown = documented(only, ADAPTERS + "/{name}/unload")
    assert {row["version"]: row["phase"] for row in shown["versions"]} == {one: "Ready", two: "Unloaded"}
    both = await admin.post(f"{ADAPTERS}/pirate/unload")
    assert {row["phase"] for row in both.json()["versions"]} == {"Unloaded"}
    await admin.patch(f"{ADAPTERS}/pirate", json={"pinned": True})
    assert "pinned" in refused(await admin.post(f"{ADAPTERS}/pirate/unload"), 409)


MISTAKES = [
    ("POST", "", {"name": "Pirate", "source": "hf://a/b"}, "name"),
    ("POST", "", {"name": "../pirate", "source": "hf://a/b"}, "name"),
    ("POST", "", {"name": "pirate\n", "source": "hf://a/b"}, "name"),
    ("POST", "", {"name": "p" * 65, "source": "hf://a/b"}, "name"),
    ("POST", "", {"name": "pirate"}, "source"),
    ("POST", "", {"name": "pirate", "source": "/etc/passwd"}, "source"),
    ("POST", "", {"name": "pirate", "source": "file:///etc/passwd"}, "source"),
    ("POST", "", {"name": "pirate", "source": "http://host/a.tar"}, "source"),
    ("POST", "", {"name": "pirate", "source": "hf://a/b", "path": "/x"}, "path"),
    ("POST", "", {"name": "pirate", "source": "hf://a/b", "promote": "yes"}, "promote"),
    ("POST", "", {"name": "pirate", "source": "hf://a/b", "load": "soon"}, "load"),
    ("POST", "", {"name": "pirate", "source": "hf://a/b", "upstreams": []}, "upstreams"),
    ("POST", "", {"name": "pirate", "source": "hf://a/b", "upstreams": ["a", "B"]}, "upstreams.1"),
    ("POST", "", {"name": "pirate", "source": "hf://a/b", "digest": "12"}, "digest"),
    ("POST", "", [], None),
    ("POST", "", "{", None),
    ("POST", "/pirate/promote", {}, "version"),
    ("POST", "/pirate/promote", {"version": "3f9a"}, "version"),
    ("POST", "/pirate/promote", {"version": "other@3f9a1c2b4d5e"}, "version"),
    ("POST", "/pirate/promote", {"version": 12}, "version"),
    ("POST", "/pirate/canary", {"version": "3f9a1c2b4d5e", "weight": 101}, "weight"),
    ("POST", "/pirate/canary", {"version": "3f9a1c2b4d5e", "weight": -1}, "weight"),
    ("POST", "/pirate/canary", '{"version": "3f9a1c2b4d5e", "weight": NaN}', "weight"),
    ("POST", "/pirate/load", {"version": "current"}, "version"),
    ("PATCH", "/pirate", {"pinned": None}, "pinned"),
    ("PATCH", "/pirate", {"versions": []}, "versions"),
    ("PATCH", "/Pirate", {}, "name"),
    ("GET", "/%00", None, "name"),
    ("DELETE", "/pirate/versions/latest", None, "version"),
    ("PUT", "/Pirate/archive", "x", "name"),
    ("PUT", "/pirate/archive?pin=true", "x", "pin"),
    ("PUT", "/pirate/archive?pinned=perhaps", "x", "pinned"),
    ("PUT", "/pirate/archive?pinned=true&pinned=false", "x", "pinned"),
    ("PUT", "/pirate/archive", "", None),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "param"), MISTAKES)
async def test_a_mistake_is_named_and_nothing_happens(gateway, admin, method, path, body, param):
    with_adapter(gateway, "pirate", b"1")
    before = await gateway.adapters.show("pirate")
    content = body if isinstance(body, str) or body is None else json.dumps(body)
    answer = await admin.request(method, ADAPTERS + path, content=content, headers={"content-type": "application/json"})
    assert refused(answer, 400, param)
    assert await gateway.adapters.show("pirate") == before
    assert len(gateway.adapters.begun) == 1
    assert gateway.parts() == []


async def test_what_is_not_there_is_said_not_to_be(gateway, admin):
    with_adapter(gateway, "pirate", b"1")
    nobody = "0" * 12
    for method, path, body in (
        ("GET", "/parrot", None),
        ("PATCH", "/parrot", {}),
        ("DELETE", "/parrot", None),
        ("POST", "/parrot/promote", {"version": nobody}),
        ("POST", "/parrot/rollback", None),
        ("POST", "/parrot/canary", {"version": nobody, "weight": 1}),
        ("POST", "/parrot/load", None),
        ("POST", "/parrot/unload", None),
        ("POST", "/pirate/promote", {"version": nobody}),
        ("POST", "/pirate/load", {"version": nobody}),
        ("DELETE", f"/pirate/versions/{nobody}", None),
    ):
        assert refused(await admin.request(method, ADAPTERS + path, json=body), 404), (method, path)
    assert refused(await admin.get("/admin/v1/imports/nothing"), 404)


async def test_a_body_that_is_not_json_and_a_form_are_refused(admin):
    assert refused(await admin.post(ADAPTERS, content=b"name=pirate"), 415)
    form = await admin.put(f"{ADAPTERS}/pirate/archive", files={"file": b"x"})
    assert "curl -T" in refused(form, 415)


async def test_a_clients_key_administers_nothing(gateway):
    with_adapter(gateway, "pirate", b"1")
    for key in (None, CHAT):
        async with gateway.client(key) as client:
            assert (await client.get(ADAPTERS)).status_code == 401
            assert (await client.delete(f"{ADAPTERS}/pirate")).status_code == 401
            assert (await client.put(f"{ADAPTERS}/pirate/archive", content=b"x")).status_code == 401
    assert list(gateway.adapters.records) == ["pirate"]
