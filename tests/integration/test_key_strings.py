"""S-14: what is written into a field is text, and comes back as it was; nothing else changes."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Engine, event

from tests.integration.keyed import Keyed, keyed
from tests.tiers import repeated

_ENDINGS = ("", "--", "#", "/*", ";", "\\", "'", '"', "`", ")", "%00", " ", "\u00a0", "\u2028")
_INJECTIONS = (
    "'", "''", '"', "`", "\\'", "';", "' OR '1'='1", "' OR 1=1 --", '" OR ""="', "') OR ('1'='1", "admin'--",
    "'; DROP TABLE api_keys", "'; DELETE FROM audit", "'; UPDATE api_keys SET revoked = NULL",
    "1; ATTACH DATABASE '/tmp/x' AS x", "' UNION SELECT digest FROM api_keys", "x' AND SLEEP(5)",
    "'||(SELECT digest FROM api_keys LIMIT 1)||'", "%27%20OR%201%3D1", "$(sleep 5)", "${jndi:ldap://x}", "{{7*7}}",
    ":id", ":key_id", "?", "?1", "@x", "$1", "%s", "%(id)s", "{0}", "NULL", "null", "true", "0", "-1", "1e309",
    "\u02bc OR 1=1", "\uff07 OR 1=1", "ＳＥＬＥＣＴ", "\u202edrawkcab", "🔑'--", "a" * 250,
    "[]", '{"$gt": ""}', "*", "%", "_",
    "\\u0027", "&#39;", "<script>alert(1)</script>", "../../etc/passwd", "pg_sleep(5)", "'; SELECT pg_sleep(5)",
    "WAITFOR DELAY '0:0:5'", "CASE WHEN 1=1 THEN 1 ELSE load_extension('x') END", "randomblob(1000000000)",
)  # fmt: skip
CORPUS = sorted({(start + end)[:256] for start, end in itertools.product(_INJECTIONS, _ENDINGS)})[::2][:300]
SLOW = 0.05  # seconds beyond what an ordinary text takes


async def untouched(gateway: Keyed, before: dict[str, Any], but: str = "") -> None:
    after = await gateway.rows()
    assert {id: row for id, row in after.items() if id != but} == {id: row for id, row in before.items() if id != but}


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) == 300


@contextmanager
def statements() -> Iterator[set[str]]:
    """What the database is told, without its parameters."""
    seen: set[str] = set()

    def note(*arguments: object) -> None:
        seen.add(str(arguments[2]))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@repeated(60, 300)
async def test_every_text_comes_back_from_every_field_or_is_refused(tmp_path: Path, repetitions: int) -> None:
    corpus = CORPUS[:: len(CORPUS) // repetitions]
    async with keyed(tmp_path) as gateway:
        await gateway.create("bystander", owner="me")
        key = await gateway.create("victim")
        before, took = await gateway.rows(), []
        fields: dict[str, Any] = {
            "owner": lambda text: text,
            "team": lambda text: text,
            "models": lambda text: [text],
            "metadata": lambda text: {"note": text},
            "name": lambda text: text,
            "endpoints": lambda text: [text],
            "allow": lambda text: [text],
        }
        accepted = dict.fromkeys(fields, 0)
        with statements() as told:
            for text, (field, form) in itertools.product(corpus, fields.items()):
                began = time.monotonic()
                answer = await gateway.client.patch(f"/admin/v1/keys/{key['id']}", json={field: form(text)})
                took.append(time.monotonic() - began)
                if answer.status_code == 200:
                    accepted[field] += 1
                    assert answer.json()[field] == form(text)
                else:
                    assert answer.status_code in (400, 409), answer.text
        assert len(told) == 4, "of whatever is written, no statement is made: begin, update, the audit's head and row"
        for field in ("owner", "team", "metadata"):
            assert accepted[field] == len(corpus)
        assert accepted["models"] > len(corpus) / 6
        assert accepted["endpoints"] == accepted["allow"] == 0
        await untouched(gateway, before, key["id"])
        assert sorted(took)[int(len(took) * 0.9)] < sorted(took)[len(took) // 2] + SLOW
        rows = [row for row in await gateway.audit() if row["act"] == "key.configure"]
        written = {json.loads(row["detail"]).get("owner") for row in rows} - {None}
        assert written <= set(CORPUS)


async def test_what_is_written_is_still_there_after_a_restart(tmp_path: Path) -> None:
    made = {}
    async with keyed(tmp_path) as gateway:
        for number, text in enumerate(CORPUS):
            made[text] = await gateway.create(f"k{number}", owner=text, metadata={"m": text})
        rows = await gateway.rows()
    async with keyed(tmp_path) as gateway:
        assert await gateway.rows() == rows
        for text in CORPUS[::10]:
            assert (await gateway.call("GET", f"keys/{made[text]['id']}"))["owner"] == text
        assert (await gateway.command("audit", "verify")).returncode == 0


async def test_no_text_in_a_path_or_a_query_finds_or_changes_anything(tmp_path: Path) -> None:
    async with keyed(tmp_path) as gateway:
        await gateway.create("bystander")
        before = await gateway.rows()
        for text in CORPUS:
            part = quote(text, safe="")
            for method, path in (
                ("GET", f"keys/{part}"), ("PATCH", f"keys/{part}"), ("DELETE", f"keys/{part}"),
                ("POST", f"keys/{part}/rotate"), ("GET", f"keys?after={part}"), ("GET", f"audit?after={part}"),
            ):  # fmt: skip
                answer = await gateway.client.request(
                    method, f"/admin/v1/{path}", json={} if method in ("PATCH", "POST") else None
                )
                # 401 and 429: with a slash it is no path of the administration; 200: `after` is a number, or nothing
                assert answer.status_code in (400, 401, 404, 405, 429) or "?after" in path, (text, answer.text)
                assert answer.status_code < 500
        await untouched(gateway, before)


@repeated(10, 300)
async def test_nor_does_any_text_that_is_typed(tmp_path: Path, repetitions: int) -> None:
    async with keyed(tmp_path) as gateway:
        await gateway.create("bystander")
        before = await gateway.rows()
        for number, text in enumerate(CORPUS[:: len(CORPUS) // repetitions]):
            name = f"typed{number}"
            done = await gateway.command("keys", "create", name, f"--owner={text}", f"--team={text}", "--json")
            made = json.loads(done.stdout)
            assert (made["owner"], made["team"]) == (text, text)
            shown = await gateway.command("keys", "show", name, "--json")
            assert json.loads(shown.stdout)["owner"] == text
            assert (await gateway.command("keys", "revoke", name)).returncode == 0
            for command in ("show", "revoke", "rotate"):
                assert (await gateway.command("keys", command, "--", text)).returncode == 1
        rows = await gateway.rows()
        assert {id: rows[id] for id in before} == before
