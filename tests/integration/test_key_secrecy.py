"""S-6: a key is where it was shown once, and nowhere else."""

from __future__ import annotations

import asyncio
import base64
import logging
from pathlib import Path

import pytest

from tests import wire
from tests.gateway import ADMIN_KEY, CLIENT_KEY, gateway_process
from tests.integration.keyed import chat, keyed


def parts(key: str) -> list[bytes]:
    """The key's random part, which is enough to find it by, and other ways to write it."""
    secret = key[15:48]
    return [secret.encode(), base64.b64encode(key.encode()), key.encode().hex().encode(), secret[:16].encode()]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_a_key_is_in_no_file_no_log_no_metric_no_row_and_no_later_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[bytes] = []
    async with keyed(tmp_path) as gateway:
        made = [await gateway.create(f"k{number}", owner="x") for number in range(5)]
        made += [await gateway.rotate(key["id"], grace=60) for key in made[:3]]
        await gateway.revoke(made[0]["id"])
        shown = [key["key"] for key in made]
        for key in shown:
            seen.append((await gateway.post(key, chat(stream=True))).content)
            seen.append((await gateway.post(key + "x", chat())).content)
            seen.append((await gateway.get(key, f"/v1/models/{key}")).content)
        pages = ["keys", f"keys/{made[1]['id']}", "audit", "config", "upstreams", "openapi.json"]
        for page in ("/metrics", *(f"/admin/v1/{page}" for page in pages)):
            seen += [(await gateway.client.get(page)).content]
        files = contents(tmp_path)
        assert {"gateway.db", "gateway.db-wal"} <= {path.name for path in files}
    files |= contents(tmp_path)
    logged = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records if _ours(record)).encode()
    pepper = files[tmp_path / "gateway.pepper"].strip()
    for key in shown:
        for part in parts(key):
            assert not [path for path, content in files.items() if part in content]
            assert part not in logged
            assert not [answer for answer in seen if part in answer.replace(f"'{key}'".encode(), b"")]
    for path, content in files.items():
        if path.name not in ("gateway.pepper", "gateway.yaml"):
            for secret in (pepper, CLIENT_KEY.encode(), ADMIN_KEY.encode()):
                assert secret not in content, path
    assert pepper not in logged + b"".join(seen)


def _ours(record: logging.LogRecord) -> bool:
    return record.name.startswith(("gateway", "uvicorn", "asyncio", "sqlalchemy", "alembic"))


async def test_what_is_stored_of_a_key_is_no_key(tmp_path: Path) -> None:
    async with keyed(tmp_path) as gateway:
        made = await gateway.create("anna")
        inside = gateway.gateway.inside
        assert inside is not None
        record = inside.snapshots.current.keys
        for digest in record:
            for form in (digest.hex(), base64.b64encode(digest).decode(), f"sk-lgw-{digest.hex()}"):
                assert (await gateway.get(form)).status_code in (401, 429)
        assert await gateway.lets_in(made["key"])


async def test_a_process_that_was_killed_leaves_no_key_behind(tmp_path: Path) -> None:
    config = {"upstreams": [{"name": "up", "kind": "openai", "base_url": "http://127.0.0.1:9/v1", "models": ["m"]}]}
    with gateway_process(config, tmp_path) as gateway:
        await gateway.ready()
        auth = [("authorization", f"Bearer {gateway.admin_key}")]
        made = await wire.post(gateway.url, "/admin/v1/keys", {"name": "anna"}, auth)
        key = made.json["key"]
        assert gateway.process is not None
        gateway.process.kill()
        await asyncio.to_thread(gateway.process.wait)
    for path, content in contents(tmp_path).items():
        assert not [part for part in parts(key) if part in content], path
