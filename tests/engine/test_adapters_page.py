"""docs/adapters.md: every command in it, run as it stands there, one after the other, does what the page says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters import digest_of
from tests import http
from tests.real import ADAPTERS, JSON, MODEL, PIRATE, ROOT, Served

PAGE = ROOT / "docs" / "adapters.md"
OLD, NEW = "3f9a1c2b4d5e", "8b0d6a1e7c24"  # the page's versions
ROWS = [{"instruction": f"Say {word}.", "input": "", "output": f"{word.title()}, indeed."} for word in ("yes", "no")]


def commands() -> Iterator[str]:
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        yield from block.replace("\\\n", "").splitlines()


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with what the page's reader has."""
    shutil.copytree(ADAPTERS / PIRATE, tmp_path / "support-bot")
    shutil.copytree(ADAPTERS / JSON, tmp_path / "support-bot-v2")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "my-base").symlink_to(MODEL)
    (tmp_path / "var").mkdir()
    for name in ("engine", "models"):
        (tmp_path / "var" / name).symlink_to(ROOT / "var" / name)
    (tmp_path / "prompts.txt").write_text("What is the capital of Italy?\n")
    (tmp_path / "my-data.json").write_text(json.dumps(ROWS))
    return tmp_path


def answered_by(real: Served) -> str | None:
    """The version that answers for the page's name; None where there is no such name."""
    body = {"model": "support-bot", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
    reply = http.post(f"{real.gateway.v1}/chat/completions", json=body, headers=real.gateway.headers, timeout=60)
    return reply.headers.get("x-gateway-adapter") if reply.status_code == 200 else None


@pytest.mark.engine
@pytest.mark.timeout(420)
def test_every_command_of_the_page_does_what_it_says(real: Served, desk: Path) -> None:
    versions = {OLD: digest_of(desk / "support-bot")[:12], NEW: digest_of(desk / "support-bot-v2")[:12]}
    old, new = (f"support-bot@{version}" for version in versions.values())
    after = {
        "gateway adapters add support-bot support-bot": old,
        "gateway adapters add support-bot support-bot-v2": old,
        f"gateway adapters promote support-bot {versions[NEW]}": new,
        "gateway adapters rollback support-bot": old,
        "gateway adapters unload support-bot": old,
        f"gateway adapters remove {old}": new,
        "gateway adapters remove support-bot": None,
    }
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GATEWAY_URL": real.gateway.url,
        "GATEWAY_ADMIN_KEY": real.gateway.admin_key,
        "GATEWAY_KEY": real.gateway.key,
    }
    seen = set()
    for written in commands():
        command = written.replace(OLD, versions[OLD]).replace(NEW, versions[NEW])
        ran = subprocess.run(
            command, shell=True, check=False, cwd=desk, env=environ, capture_output=True, text=True, timeout=240
        )
        assert ran.returncode == 0, (written, ran.stdout, ran.stderr)
        if command in after:
            seen.add(command)
            assert answered_by(real) == after[command], written
    assert seen == after.keys()
    assert (desk / "var" / "my-adapter" / "adapter_model.safetensors").exists()
