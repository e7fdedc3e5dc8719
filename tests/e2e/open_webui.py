"""Open WebUI as deploy/compose.yaml runs it, but for its addresses and keys: a process with a new, empty database."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
import yaml

from deploy.engine.progress import bound
from gateway.server import listen
from tests.gateway import ROOT

COMMAND = ROOT / "var" / "open-webui" / "bin" / "open-webui"
COMPOSE = ROOT / "deploy" / "compose.yaml"
BOOT = 180.0  # seconds; 12 on idle cores, 40 on busy ones
_REFERENCE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<text>[^}]*))?\}")


@dataclass
class OpenWebUI:
    """A running Open WebUI.  Its database outlives a restart."""

    url: str
    log: Path


def composed(values: Mapping[str, str]) -> dict[str, str]:
    """The environment that the compose file gives Open WebUI where `values` is deploy/.env."""

    def resolve(match: re.Match[str]) -> str:
        name, kind, text = match["name"], match["kind"], match["text"]
        if kind == "-":
            return values.get(name) or text
        return values[name]

    service = yaml.safe_load(COMPOSE.read_text())["services"]["open-webui"]
    return {name: _REFERENCE.sub(resolve, value) for name, value in service["environment"].items()}


@contextlib.contextmanager
def open_webui(folder: Path, gateway: str, values: Mapping[str, str]) -> Iterator[OpenWebUI]:
    """Open WebUI in front of the gateway at this URL, ready.  `values` as in `composed`; a second start in the same
    folder goes on with the first one's database."""
    assert COMMAND.exists(), f"{COMMAND.relative_to(ROOT)} is missing: run `python -m tests.e2e.prepare`"
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = composed({"WEBUI_URL": url, "WEBUI_SECRET_KEY": secrets.token_hex(24), **values})
    environment = {name: value.replace("http://gateway:8000", gateway) for name, value in environment.items()}
    own = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "DATA_DIR": str(folder),
        "USE_SLIM_DOCKER": "true",  # what is installed is the slim image's set of packages
    }
    log = folder / "open-webui.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            bound([str(COMMAND), "serve", "--host", "127.0.0.1", "--port", str(port)]),
            cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env={**environment, **own},
        )  # fmt: skip
    try:
        _wait_until_ready(process, url, log)
        yield OpenWebUI(url, log)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + BOOT
    while True:
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(f"{url}/ready", timeout=5).status_code == 200:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"Open WebUI did not become ready\n{log.read_text()[-4000:]}")
        time.sleep(0.1)  # another process: there is no event to wait for
