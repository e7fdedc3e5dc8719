"""Starts the gateway for a test: in the test's own loop, or as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import yaml

from gateway import server
from gateway.app import Gateway
from gateway.controlplane.engineprocess import free_port
from gateway.controlplane.loader import load
from tests import http

ROOT = Path(__file__).resolve().parent.parent
CLIENT_KEY = "sk-client-5d1f0c8be2a94477"
ADMIN_KEY = "sk-admin-90b7e6a3f1c24d58"
AUTH = {"admin_key": ADMIN_KEY, "keys": [{"name": "tester", "key": CLIENT_KEY}]}


@dataclass
class Running:
    """A gateway that answers at `url`."""

    url: str
    key: str = CLIENT_KEY
    admin_key: str = ADMIN_KEY
    inside: Gateway | None = None
    headers: dict[str, str] = field(default_factory=lambda: {"authorization": f"Bearer {CLIENT_KEY}"})
    admin_headers: dict[str, str] = field(default_factory=lambda: {"authorization": f"Bearer {ADMIN_KEY}"})

    @property
    def v1(self) -> str:
        """The base URL that clients are given."""
        return f"{self.url}/v1"

    async def ready(self, timeout: float = 60.0) -> None:
        """Returns when a model can be served."""
        async with asyncio.timeout(timeout):
            if self.inside is not None:
                while not self.inside.snapshots.current.ready:
                    await asyncio.sleep(0.005)  # requests wait for the route of a name, and here none is meant
                return
            async with http.client() as client:
                while not await self._is_ready(client):
                    await asyncio.sleep(0.05)  # another process: there is no event to wait for

    async def _is_ready(self, client: httpx2.AsyncClient) -> bool:
        try:
            return (await client.get(f"{self.url}/readyz")).status_code == 200
        except httpx2.TransportError:  # it does not listen yet
            return False

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        async with http.client() as client:
            page = (await client.get(f"{self.url}/metrics")).text
        return sample(page, name, **labels)


def sample(page: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels, on a page of /metrics."""
    wanted = {f'{key}="{value}"' for key, value in labels.items()}
    total = 0.0
    for line in page.splitlines():
        head, _, value = line.rpartition(" ")
        if head.partition("{")[0] == name and wanted <= set(head.partition("{")[2].rstrip("}").split(",")):
            total += float(value)
    return total


def config_text(config: Mapping[str, Any] | str, folder: Path) -> str:
    """The configuration with what every test wants: keys, a free port, a store of its own."""
    if isinstance(config, str):
        return config
    storage = {"url": f"sqlite:///{folder}/gateway.db"}
    whole = {"auth": AUTH, "storage": storage, "adapters": {"store": str(folder / "store")}, **config}
    whole["server"] = {"port": 0, "drain_timeout": 1, **whole.get("server", {})}
    return yaml.safe_dump(whole)


@contextlib.asynccontextmanager
async def running_gateway(
    config: Mapping[str, Any] | str, folder: Path, environ: Mapping[str, str] | None = None, wait: bool = True
) -> AsyncIterator[Running]:
    """A gateway in this loop.  `folder` is the test's own (tmp_path); `wait`: until a model can be served."""
    file = folder / "gateway.yaml"
    file.write_text(config_text(config, folder))
    environ = {**os.environ, **(environ or {})}
    loaded = load(file, environ)
    gateway = Gateway(loaded, environ)
    stop = server.Stop()
    address: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
    listener = server.listen(loaded.server.host, loaded.server.port)
    task = asyncio.create_task(gateway.serve(listener, stop, lambda host, port: address.set_result((host, port))))
    await asyncio.wait((task, address), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    host, port = await address
    running = Running(f"http://{host}:{port}", inside=gateway)
    try:
        if wait:
            await running.ready()
        yield running
    finally:
        stop.ask()
        await task


@dataclass
class GatewayProcess(Running):
    """A gateway in a process of its own, as people run it."""

    process: subprocess.Popen[bytes] | None = None
    log: Path = Path()


@contextlib.contextmanager
def gateway_process(
    config: Mapping[str, Any] | str, folder: Path, environ: Mapping[str, str] | None = None
) -> Iterator[GatewayProcess]:
    """`gateway serve`, with its log in a file.  Killed at the end if it still runs."""
    file = folder / "gateway.yaml"
    file.write_text(config_text(config, folder))
    log = folder / "gateway.log"
    with free_port() as port:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", "--config", str(file), "--port", str(port)],
                cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environ or {})},
            )  # fmt: skip
        try:
            yield GatewayProcess(f"http://127.0.0.1:{port}", process=process, log=log)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
