"""vLLM without the gateway, for tests of what is in it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2

from deploy.engine.progress import bound
from gateway.controlplane.engineprocess import free_port
from tests import http
from tests.real import BOOT


@dataclass
class BareVllm:
    """It answers at `url`."""

    url: str
    log: Path


@contextlib.contextmanager
def bare_vllm(engine_env: Path, model: Path, log: Path, *args: str, **environ: str) -> Iterator[BareVllm]:
    """vLLM with this model and these arguments, once it is healthy."""
    with free_port() as port:
        where = ["--host", "127.0.0.1", "--port", str(port)]
        command = [str(engine_env / "bin" / "vllm"), "serve", str(model), *where, *args]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **environ}
        with log.open("wb") as output:
            process = subprocess.Popen(
                bound(command), stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        try:
            deadline = time.monotonic() + BOOT
            url = f"http://127.0.0.1:{port}"
            while True:
                with contextlib.suppress(httpx2.HTTPError):
                    if http.get(f"{url}/health").status_code == 200:
                        break
                assert process.poll() is None, f"vLLM ended:\n{log.read_text()[-4000:]}"
                assert time.monotonic() < deadline, f"vLLM did not become ready:\n{log.read_text()[-4000:]}"
                time.sleep(0.2)  # another process: there is no event to wait for
            yield BareVllm(url, log)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
