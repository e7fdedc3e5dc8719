"""Runs the command `gateway` as people do: as a process, and beside servers that are real ones on loopback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

from gateway.cli import main

ROOT = Path(__file__).resolve().parents[2]


def gateway(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`gateway ARGUMENTS` with nothing of this process's environment but what Python needs."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd or ROOT), "PYTHONPATH": str(ROOT), **(env or {})}
    return subprocess.run(
        [sys.executable, "-m", "gateway", *map(str, arguments)],
        cwd=cwd or ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def gateway_here(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The same in this process, without a second for Python to start; for what does not depend on being a process."""
    argv = ["gateway", *map(str, arguments)]
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.dict(os.environ, env or {}, clear=True),
        mock.patch.object(sys, "argv", argv),
        contextlib.chdir(cwd or ROOT),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
    return subprocess.CompletedProcess(argv, status, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def serving(pages: Mapping[str, Any], key: str | None = None) -> Iterator[str]:
    """A server that answers GETs with these JSON pages, to those who have the key; its URL."""

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if key is not None and self.headers["authorization"] != f"Bearer {key}":
                self.answer(401, {"error": {"message": "no"}})
            elif self.path in pages:
                self.answer(200, pages[self.path])
            else:
                self.answer(404, {"error": {"message": "no such page"}})

        def answer(self, status: int, page: Any) -> None:
            body = json.dumps(page).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """A URL where nothing listens; the port stays taken, so that nothing else comes to listen there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def written(folder: Path, text: str) -> Path:
    """The text as a configuration file."""
    file = folder / "gateway.yaml"
    file.write_text(text, encoding="utf-8")
    return file
