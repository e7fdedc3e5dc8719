"""`gateway adapters`: what people type, what they are told, and what has happened then."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.adapter_corpus import TINY, Craft
from tests.integration.administration import ADMIN_KEY, CHAT, Administered, administered, with_adapter
from tests.patience import LATE
from tests.unit.commands import gateway_here


@pytest.fixture
async def running(tmp_path: Path):
    async with administered(tmp_path) as edge:
        yield edge


async def typed(
    edge: Administered, *arguments: object, key: str = ADMIN_KEY, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`gateway adapters ARGUMENTS` against this gateway."""
    environ = {"GATEWAY_URL": edge.url, "GATEWAY_ADMIN_KEY": key}
    return await asyncio.to_thread(gateway_here, "adapters", *arguments, env=environ, cwd=cwd)


async def comes(true: Callable[[], bool], command: asyncio.Task[Any]) -> None:
    """Waits for what a command has begun, and now waits for itself."""
    async with asyncio.timeout(3 * LATE):
        while not true():
            await asyncio.sleep(0.01)
    assert not command.done()


async def test_a_folder_is_packed_sent_and_followed_until_it_is_ready(running, tmp_path):
    Craft(TINY).write(tmp_path / "run" / "out")
    done = await typed(running, "add", "pirate", "run/out", cwd=tmp_path)
    version = running.adapters.records["pirate"].versions[0]
    assert (done.returncode, done.stdout) == (0, f"pirate@{version.version} is Ready, and pirate points to it.\n")
    assert [line for line in done.stderr.splitlines() if line] == ["Packing …", "Uploading …"]
    again = await typed(running, "add", "pirate", "run/out", "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["version"] == version.version, "the same files are the same version"
    assert len(running.adapters.records["pirate"].versions) == 1


async def test_an_archive_is_sent_as_it_is_with_its_options(running, tmp_path):
    (tmp_path / "pirate.tar.gz").write_bytes(b"any bytes")
    done = await typed(
        running, "add", "pirate", tmp_path / "pirate.tar.gz", "--pin", "--lazy", "--upstream", "a", "--upstream", "b",
        "--json",
    )  # fmt: skip
    row = json.loads(done.stdout)
    assert (done.returncode, row["name"], row["phase"]) == (0, "pirate", "Ready")
    assert row["digest"] == hashlib.sha256(b"any bytes").hexdigest()
    record = running.adapters.records["pirate"]
    assert (record.pinned, record.load, record.upstreams) == (True, "lazy", ("a", "b"))


async def test_a_source_elsewhere_is_only_named(running):
    done = await typed(running, "add", "pirate", "hf://crew/pirate@main", "--eager")
    assert done.returncode == 0
    record = running.adapters.records["pirate"]
    assert (record.versions[0].source, record.load) == ("hf://crew/pirate@main", "eager")
    noted = await typed(running, "add", "ship", "hf://crew/ship")
    assert noted.stderr == "note: what ship is made of\n"


async def test_a_later_version_waits_for_its_promotion(running):
    one = with_adapter(running, "pirate", b"1")[0]
    done = await typed(running, "add", "pirate", "hf://crew/pirate@2")
    two = running.adapters.records["pirate"].versions[1].version
    assert f"gateway adapters promote pirate {two}" in done.stdout
    assert running.adapters.records["pirate"].current.startswith(one)
    done = await typed(running, "add", "pirate", "hf://crew/pirate@3", "--promote")
    assert "pirate points to it" in done.stdout


async def test_an_import_that_fails_says_why(running):
    running.adapters.broken["hf://crew/parrot"] = "rank 64 > 16: start the engine with --max-lora-rank 64, or merge"
    done = await typed(running, "add", "parrot", "hf://crew/parrot")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "parrot: rank 64 > 16: start the engine with --max-lora-rank 64, or merge\n"
    done = await typed(running, "add", "parrot", "hf://crew/parrot", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["phase"] == "Failed"


async def test_add_waits_until_it_is_ready_unless_it_is_told_not_to(running):
    running.adapters.slow.add("*")
    begun = await typed(running, "add", "pirate", "hf://crew/pirate", "--no-wait", "--json")
    assert (begun.returncode, json.loads(begun.stdout)["phase"]) == (0, "Loading")
    waiting = asyncio.create_task(typed(running, "add", "pirate", "hf://crew/pirate@2", "--promote"))
    await comes(lambda: len(running.adapters.begun) == 2, waiting)
    running.adapters.settle()
    done = await waiting
    assert done.returncode == 0
    assert "pirate points to it" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("Pirate", "hf://crew/pirate"), "no adapter's name"),
        (("pirate", "nowhere"), "no such folder or archive here"),
        (("pirate", "/dev"), "adapter_config.json"),
        (("pirate", "http://host/a.tar"), "http:// is not taken"),
        (("pirate", "https://host/a.tar", "--digest", "12"), "digest"),
        (("pirate", "/dev/null", "--digest", "0" * 64), "--digest is for a URL"),
        (("pirate", "/dev/null"), "/dev/null is not a folder"),
    ],
)
async def test_a_source_that_cannot_be_is_refused(running, arguments, reason):
    done = await typed(running, "add", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert reason in done.stderr
    assert running.adapters.begun == {}


async def test_a_wrong_key_is_known_before_anything_is_sent(running, tmp_path):
    Craft(TINY).write(tmp_path / "out")
    done = await typed(running, "add", "pirate", tmp_path / "out", key=CHAT)
    assert done.returncode == 1
    assert "refuses the admin key" in done.stderr
    assert "Uploading" not in done.stderr


async def test_an_archive_over_the_limit_is_refused_by_the_gateway(running, tmp_path):
    with (tmp_path / "large.tar").open("wb") as file:
        file.truncate(9 << 20)
    done = await typed(running, "add", "pirate", tmp_path / "large.tar")
    assert done.returncode == 1
    assert "The body exceeds" in done.stderr


async def test_list_and_show(running):
    one, two = with_adapter(running, "pirate", b"1", b"2")
    await typed(running, "canary", "pirate", two, "--weight", 10)
    listed = await typed(running, "list")
    assert [line.split()[:5] for line in listed.stdout.splitlines()[1:]] == [
        ["pirate", one, "Ready", "90", "%"], ["pirate", two, "Ready", "10", "%"]
    ]  # fmt: skip
    shown = await typed(running, "show", "pirate")
    assert f"pirate points to {one}; 10 % of its traffic goes to {two}." in shown.stdout
    assert "2023-11-14 22:13" in shown.stdout
    document = await typed(running, "show", "pirate", "--json")
    assert json.loads(document.stdout) == await running.adapters.show("pirate")
    nobody = await typed(running, "show", "parrot")
    assert (nobody.returncode, nobody.stderr) == (1, "There is no adapter parrot.\n")


async def test_promote_waits_until_the_name_has_moved(running):
    running.adapters.slow.add("*")
    one, two = with_adapter(running, "pirate", b"1", b"2")
    later = await typed(running, "promote", "pirate", two, "--no-wait")
    assert later.stdout == f"pirate points to {one}; {two} follows when it is Ready.\n"
    await running.adapters.promote("pirate", one)
    waiting = asyncio.create_task(typed(running, "promote", "pirate", f"pirate@{two}"))
    await comes(lambda: running.adapters.records["pirate"].next is not None, waiting)
    running.adapters.settle()
    done = await waiting
    assert (done.returncode, done.stdout) == (0, f"pirate points to {two}.\n")


async def test_rollback_waits_for_a_version_that_was_unloaded(running):
    one, two = with_adapter(running, "pirate", b"1", b"2")
    await running.adapters.promote("pirate", two)
    running.adapters.slow.add(running.adapters.records["pirate"].versions[0].digest)
    waiting = asyncio.create_task(typed(running, "rollback", "pirate"))
    await comes(lambda: running.adapters.records["pirate"].next is not None, waiting)
    running.adapters.settle()
    assert (await waiting).stdout == f"pirate points to {one}.\n"


async def test_promote_gives_up_when_the_version_will_not_come(running):
    running.adapters.slow.add("*")
    _, two = with_adapter(running, "pirate", b"1", b"2")
    waiting = asyncio.create_task(typed(running, "promote", "pirate", two))
    await comes(lambda: running.adapters.records["pirate"].next is not None, waiting)
    await running.adapters.remove("pirate", two)
    done = await waiting
    assert done.returncode == 1
    assert "will not be current" in done.stderr


async def test_rollback_and_the_end_of_a_canary(running):
    one, two = with_adapter(running, "pirate", b"1", b"2")
    await typed(running, "promote", "pirate", two)
    done = await typed(running, "rollback", "pirate")
    assert (done.returncode, done.stdout) == (0, f"pirate points to {one}.\n")
    done = await typed(running, "rollback", "pirate")
    assert done.returncode == 1
    assert "no version before" in done.stderr
    begun = await typed(running, "canary", "pirate", two, "--weight", 12.5, "--json")
    assert json.loads(begun.stdout)["canaries"] == [{"version": two, "weight": 12.5}]
    ended = await typed(running, "canary", "pirate", two, "--weight", 0)
    assert ended.stdout == f"pirate points to {one}.\n"


async def test_set_changes_what_is_given(running):
    with_adapter(running, "pirate", b"1")
    assert (await typed(running, "set", "pirate", "--pin", "--load", "lazy", "--upstream", "a")).returncode == 0
    record = running.adapters.records["pirate"]
    assert (record.pinned, record.load, record.upstreams) == (True, "lazy", ("a",))
    await typed(running, "set", "pirate", "--no-pin", "--load", "default")
    record = running.adapters.records["pirate"]
    assert (record.pinned, record.load, record.upstreams) == (False, None, ("a",))
    await typed(running, "set", "pirate", "--all-upstreams")
    assert running.adapters.records["pirate"].upstreams is None
    assert "nothing to set" in (await typed(running, "set", "pirate")).stderr


async def test_unload_and_load_one_version_or_all(running):
    one, two = with_adapter(running, "pirate", b"1", b"2")
    done = await typed(running, "unload", f"pirate@{two}")
    assert done.stdout == f"pirate@{two} is unloaded until it is asked for.\n"
    assert [row["phase"] for row in await running.adapters.rows()] == ["Ready", "Unloaded"]
    await typed(running, "unload", "pirate")
    done = await typed(running, "load", "pirate")
    assert done.stdout == "pirate is loaded.\n"
    assert running.adapters.asked == [f"pirate@{one}"]


async def test_remove_a_version_and_then_all(running):
    one, two = with_adapter(running, "pirate", b"1", b"2")
    done = await typed(running, "remove", f"pirate@{one}")
    assert done.stdout == f"pirate@{one} is removed.\npirate points to {two}.\n"
    done = await typed(running, "remove", "pirate", "--json")
    assert json.loads(done.stdout) == {"name": "pirate", "deleted": True}
    assert (await typed(running, "remove", "pirate")).returncode == 1


@pytest.mark.parametrize("command", ["remove", "unload", "load"])
async def test_a_version_that_was_forgotten_is_not_all_of_them(running, command):
    """`pirate@$OLD`, where OLD is not set."""
    with_adapter(running, "pirate", b"1", b"2")
    done = await typed(running, command, "pirate@")
    assert done.returncode == 1
    assert "'pirate@' names no version: write pirate@VERSION, or pirate" in done.stderr
    assert len(running.adapters.records["pirate"].versions) == 2


@pytest.mark.parametrize("name", ["../config", "a/b", "a?b", "a#b", "", "ä"])
async def test_no_name_leads_to_another_page(running, name):
    for arguments in (("show", name), ("remove", name), ("remove", f"pirate@{name or '/'}"), ("load", name)):
        done = await typed(running, *arguments)
        assert done.returncode == 1
        assert "no adapter's name or version" in done.stderr


async def test_add_as_a_process_of_its_own(running, tmp_path):
    """A terminal is not needed, and nothing of the key is seen."""
    Craft(TINY).write(tmp_path / "out")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "adapters", "add", "pirate", str(tmp_path / "out"), "--url", running.url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={"GATEWAY_ADMIN_KEY": ADMIN_KEY},
    )  # fmt: skip
    said, complained = await process.communicate()
    assert process.returncode == 0, complained
    assert b"pirate points to it" in said
    assert ADMIN_KEY.encode() not in said + complained
