"""What only the real vLLM can show of its supervision; tests/integration/test_engine_supervision.py has the rest."""

from __future__ import annotations

import asyncio

import psutil
import pytest

from tests import http
from tests.real import Served

pytestmark = [pytest.mark.engine, pytest.mark.timeout(420)]


def tree_of(engine: psutil.Process) -> list[psutil.Process]:
    """The engine's processes: the API server, EngineCore, the workers and their helpers."""
    tree = [engine, *engine.children(recursive=True)]
    assert len(tree) >= 3
    return tree


async def test_every_process_of_the_engine_listens_on_loopback_only(real: Served) -> None:
    listeners = [
        connection.laddr.ip
        for process in tree_of(real.engine)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listeners
    assert set(listeners) == {"127.0.0.1"}


async def test_the_engine_asks_for_its_key_and_has_no_routes_for_developers(real: Served) -> None:
    line = real.engine.cmdline()
    engine = f"http://127.0.0.1:{line[line.index('--port') + 1]}"
    async with http.client(base_url=engine, trust_env=False, timeout=30) as client:
        assert (await client.get("/health")).status_code == 200
        for path in ("/v1/load_lora_adapter", "/v1/chat/completions", "/adapters", "/invocations", "/tokenize"):
            assert (await client.post(path, json={})).status_code == 401
        assert (await client.delete("/adapters/pirate")).status_code == 401
        assert (await client.get("/metrics")).status_code == 401
        client.headers["authorization"] = f"Bearer {real.engine.environ()['VLLM_API_KEY']}"
        assert (await client.get("/metrics")).status_code == 200
        for path in ("/sleep", "/collective_rpc", "/reset_prefix_cache", "/pause"):
            assert (await client.post(path, json={})).status_code == 404


async def test_the_engines_key_is_in_no_command_line_and_in_no_log(real: Served) -> None:
    key = real.engine.environ()["VLLM_API_KEY"]
    assert len(key) >= 32
    for process in psutil.process_iter():
        try:
            assert key not in " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
    log = await asyncio.to_thread(real.gateway.log.read_text)
    assert "Starting vLLM" in log, "the engine's log is in ours"
    assert key not in log
