"""The life of a key: made, used, changed, rotated, revoked; over the API and by command."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest

from gateway.controlplane.pepper import find_pepper
from gateway.domain.errors import StorageError
from tests.gateway import ADMIN_KEY, CLIENT_KEY
from tests.integration.keyed import Keyed, chat, keyed
from tests.unit.scenes import config, vllm


@pytest.fixture
async def gateway(tmp_path: Path):
    async with keyed(tmp_path) as running:
        yield running


async def test_a_key_is_shown_once_and_lets_in_from_then_on(gateway: Keyed) -> None:
    made = await gateway.create("anna", owner="Anna Ångström", team="blue", metadata={"ticket": "OPS-1"})
    assert await gateway.lets_in(made["key"])
    assert (await gateway.post(made["key"], chat())).status_code == 200
    shown = await gateway.call("GET", f"keys/{made['id']}")
    assert "key" not in shown
    assert shown == {name: value for name, value in made.items() if name != "key"}
    assert (shown["owner"], shown["team"], shown["state"], shown["source"]) == (
        "Anna Ångström", "blue", "active", "api",
    )  # fmt: skip
    assert await gateway.call("GET", "keys/anna") == shown
    assert made["key"] not in json.dumps(await gateway.rows())


async def test_keys_survive_a_restart(tmp_path: Path) -> None:
    async with keyed(tmp_path) as gateway:
        kept = await gateway.create("kept", models=["m"], expires=int(time.time()) + 900)
        gone = await gateway.create("gone")
        rotated = await gateway.rotate(kept["id"], grace=600)
        await gateway.revoke(gone["id"])
        rows = await gateway.rows()
    async with keyed(tmp_path) as gateway:
        assert await gateway.rows() == rows
        assert await gateway.lets_in(kept["key"])
        assert await gateway.lets_in(rotated["key"])
        assert not await gateway.lets_in(gone["key"])


async def test_a_rotated_key_is_another_one_with_the_same_rights(gateway: Keyed) -> None:
    made = await gateway.create("anna", models=["nothing"])
    rotated = await gateway.rotate(made["id"])
    assert not await gateway.lets_in(made["key"])
    assert (await gateway.get(rotated["key"])).json()["data"] == []
    assert (rotated["id"], rotated["rotation"], rotated["previous_until"]) == (made["id"], 1, None)
    again = await gateway.rotate("anna", grace=60)
    assert await gateway.lets_in(rotated["key"])
    assert await gateway.lets_in(again["key"])
    assert not await gateway.lets_in(made["key"])


async def test_an_expired_key_is_told_so_and_only_whoever_has_it(gateway: Keyed) -> None:
    made = await gateway.create("anna", expires=int(time.time()) - 1)
    answer = await gateway.get(made["key"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "api_key_expired")
    assert "expired" in answer.json()["error"]["message"]
    assert (await gateway.call("GET", "keys/anna"))["state"] == "expired"
    await gateway.call("PATCH", "keys/anna", {"expires": int(time.time()) + 60})
    assert await gateway.lets_in(made["key"])
    await gateway.call("PATCH", "keys/anna", {"expires": None})
    assert (await gateway.call("GET", "keys/anna"))["expires"] is None


async def test_a_key_reaches_the_models_and_endpoints_it_may_use_and_sends_what_it_may(gateway: Keyed) -> None:
    made = await gateway.create("anna", models=["other*"], endpoints=["/v1/embeddings"])
    key = made["key"]
    refused = await gateway.post(key, chat())
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
    assert (await gateway.post(key, {"model": "m", "input": "x"}, "/v1/embeddings")).status_code == 404
    await gateway.call("PATCH", "keys/anna", {"models": ["m"], "endpoints": None})
    assert (await gateway.post(key, chat())).status_code == 200
    assert (await gateway.post(key, chat(priority=1))).status_code == 403
    await gateway.call("PATCH", "keys/anna", {"allow": ["priority"]})
    assert (await gateway.post(key, chat(priority=1))).status_code == 200


async def test_a_name_is_one_keys_until_that_is_revoked(gateway: Keyed) -> None:
    one, two = await gateway.create("anna"), await gateway.create("bert")
    for taken in ("anna", "tester"):
        await gateway.call("POST", "keys", {"name": taken}, 409)
        await gateway.call("PATCH", f"keys/{two['id']}", {"name": taken}, 409)
    await gateway.revoke("anna")
    other = await gateway.create("anna")
    assert (await gateway.call("GET", "keys/anna"))["id"] == other["id"]
    assert (await gateway.call("GET", f"keys/{one['id']}"))["state"] == "revoked"
    await gateway.call("PATCH", f"keys/{other['id']}", {"name": "carl"})
    assert (await gateway.call("GET", "keys/carl"))["id"] == other["id"]
    await gateway.call("GET", "keys/anna", status=404)


async def test_a_revoked_key_is_revoked_for_good(gateway: Keyed) -> None:
    made = await gateway.create("anna")
    first = await gateway.revoke(made["id"])
    assert await gateway.revoke(made["id"]) == first
    await gateway.call("POST", f"keys/{made['id']}/rotate", {}, 409)
    await gateway.call("PATCH", f"keys/{made['id']}", {"expires": None, "owner": "x"}, 409)
    assert not await gateway.lets_in(made["key"])


async def test_keys_of_the_file_are_listed_and_cannot_be_changed(gateway: Keyed) -> None:
    row = (await gateway.rows())["tester"]
    assert (row["source"], row["state"], row["id"]) == ("file", "active", "tester")
    await gateway.call("PATCH", "keys/tester", {"owner": "x"}, 409)
    await gateway.call("POST", "keys/tester/rotate", {}, 409)
    await gateway.call("DELETE", "keys/tester", status=409)
    assert await gateway.lets_in(CLIENT_KEY)


async def test_a_gateway_needs_no_key_in_its_file_when_there_is_an_admin(tmp_path: Path) -> None:
    async with keyed(tmp_path, auth={"admin_key": ADMIN_KEY}) as gateway:
        assert not await gateway.lets_in(CLIENT_KEY)
        assert await gateway.lets_in((await gateway.create("anna"))["key"])


async def test_a_long_list_comes_in_parts(gateway: Keyed) -> None:
    for number in range(7):
        await gateway.create(f"k{number}")
    found, after, parts = [], "", 0
    while True:
        page = await gateway.call("GET", f"keys?limit=3&after={after}")
        found += [row["name"] for row in page["data"]]
        after, parts = page["data"][-1]["id"], parts + 1
        if not page["has_more"]:
            break
    assert (found, parts) == (["tester", *(f"k{number}" for number in range(7))], 3)
    await gateway.call("GET", "keys?after=nothing", status=400)


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"name": ""}, {"name": "a b"}, {"name": "x" * 65}, {"name": 1}, {"name": "x", "root": True},
        {"name": "x", "models": []}, {"name": "x", "models": "m"}, {"name": "x", "models": ["a b"]},
        {"name": "x", "endpoints": ["/admin/v1/keys"]}, {"name": "x", "allow": ["admin"]},
        {"name": "x", "expires": -1}, {"name": "x", "expires": "soon"}, {"name": "x", "expires": 1.5},
        {"name": "x", "metadata": {"a": 1}}, {"name": "x", "metadata": {"a b": "c"}},
        {"name": "x", "metadata": {str(n): "x" for n in range(17)}}, {"name": "x", "owner": "x" * 257},
        {"name": "x", "key": "sk-mine"}, {"name": "x", "id": "12345678"}, {"name": "x", "limits": {"concurrent": 0}},
    ],
    ids=str,
)  # fmt: skip
async def test_a_key_that_cannot_be_is_refused_with_a_reason(gateway: Keyed, wrong: dict[str, object]) -> None:
    await gateway.call("POST", "keys", wrong, 400)
    assert list(await gateway.rows()) == ["tester"]


async def test_the_pepper_is_made_once_for_the_gateways_user_alone(tmp_path: Path) -> None:
    file = tmp_path / "gateway.pepper"
    async with keyed(tmp_path) as gateway:
        key = (await gateway.create("anna"))["key"]
        pepper = file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    async with keyed(tmp_path) as gateway:
        assert file.read_text() == pepper
        assert await gateway.lets_in(key)


async def test_keys_of_another_pepper_let_nobody_in_and_are_shown_as_invalid(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with keyed(tmp_path) as gateway:
        made = await gateway.create("anna")
    auth = {"admin_key": ADMIN_KEY, "pepper": "0a1b2c3d4e5f60718293a4b5c6d7e8f9"}
    async with keyed(tmp_path, auth=auth) as gateway:
        assert "1 keys were made with another pepper" in caplog.text
        assert not await gateway.lets_in(made["key"])
        assert (await gateway.call("GET", "keys/anna"))["state"] == "invalid"
        assert await gateway.lets_in((await gateway.rotate("anna", grace=60))["key"])
        assert (await gateway.call("GET", "keys/anna"))["state"] == "active"


async def test_a_damaged_pepper_keeps_the_gateway_from_starting(tmp_path: Path) -> None:
    (tmp_path / "gateway.pepper").write_text("short")
    storage = {"url": f"sqlite:///{tmp_path}/gateway.db"}
    with pytest.raises(StorageError, match=r"gateway\.pepper.* is damaged"):
        find_pepper(config([vllm("a")], storage=storage))


async def test_a_key_can_be_made_listed_shown_set_rotated_and_revoked_by_command(gateway: Keyed) -> None:
    done = await gateway.command(
        "keys", "create", "anna", "--owner", "Anna", "--team", "blue", "--expires", "90d", "--model", "m",
        "--model", "support-*", "--endpoint", "/v1/chat/completions", "--allow", "priority",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    key = done.stdout.removesuffix("\n")
    assert "shown this once" in done.stderr
    assert key not in done.stderr
    assert (await gateway.post(key, chat())).status_code == 200
    listed = await gateway.command("keys", "list")
    assert "anna" in listed.stdout
    assert "tester" in listed.stdout
    shown = json.loads((await gateway.command("keys", "show", "anna", "--json")).stdout)
    assert (shown["models"], shown["endpoints"], shown["allow"]) == (
        ["m", "support-*"], ["/v1/chat/completions"], ["priority"],
    )  # fmt: skip
    assert abs(shown["expires"] - time.time() - 90 * 86_400) < 100
    assert "support-*" in (await gateway.command("keys", "show", shown["id"])).stdout
    assert (await gateway.command("keys", "set", "anna", "--expires", "never", "--name", "bert")).returncode == 0
    rotated = await gateway.command("keys", "rotate", "bert", "--grace", "60")
    assert await gateway.lets_in(rotated.stdout.strip())
    assert await gateway.lets_in(key)
    made = json.loads((await gateway.command("keys", "create", "carl", "--json")).stdout)
    assert await gateway.lets_in(made["key"])
    assert (await gateway.command("keys", "revoke", "bert")).stdout == f"bert ({shown['id']}) is revoked.\n"
    assert not await gateway.lets_in(key)
    for wrong in (["show", "nobody"], ["revoke", "tester"], ["create", "carl"], ["create", "x", "--expires", "soon"],
                  ["create", "a b"], ["set", "carl"], ["show", ".."]):  # fmt: skip
        failed = await gateway.command("keys", *wrong)
        assert (failed.returncode, failed.stdout) == (1, ""), wrong
        assert len(failed.stderr.splitlines()) == 1
