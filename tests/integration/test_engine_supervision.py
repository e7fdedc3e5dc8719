"""The engine is kept running, tells nobody its key, and never outlives the gateway.

Every engine here is a real process tree: warden, warden, API server, EngineCore, Worker (tests/fakes/fake_vllm.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
import psutil
import pytest

from gateway.controlplane.engines import Engine, EngineFailed, EngineSpec, EngineState, EngineStatus, Supervision
from gateway.domain.secret import Secret
from tests import http
from tests.fakes.engine_host import FAKE_VLLM
from tests.patience import LATE, near
from tests.processes import alive, bury

OUTER_WARDEN, INNER_WARDEN, API_SERVER, ENGINE_CORE, WORKER = range(5)
QUICK = Supervision(first_delay=0.02, longest_delay=0.1, deaths=100, boot_poll=0.02)


@dataclass
class Watched:
    """An engine with everything that it told."""

    engine: Engine
    seen: list[EngineStatus] = field(default_factory=list)
    restarts: Counter[str] = field(default_factory=Counter)
    states: list[str] = field(default_factory=list)

    def engine_restart(self, name: str) -> None:
        self.restarts[name] += 1

    def engine_state(self, name: str, state: str) -> None:
        self.states.append(state)

    async def ended(self) -> EngineStatus:
        """How its present life ended, as it was told then: by the time that anybody looks, the next may have begun."""
        lived = len(self.seen)
        ends = (EngineState.RESTARTING, EngineState.FAILED)
        await until(lambda: any(status.state in ends for status in self.seen[lived:]))
        return next(status for status in self.seen[lived:] if status.state in ends)

    def tree(self) -> list[psutil.Process]:
        """Its processes, from the outer warden to the worker."""
        return psutil.Process().children(recursive=True)


def spec(behaviour: str = "", **changes: Any) -> EngineSpec:
    fake = EngineSpec("local", "base", "smollm2", FAKE_VLLM, env={"FAKE_VLLM": Secret(behaviour)})
    return replace(fake, **changes)


@asynccontextmanager
async def running(
    engine_spec: EngineSpec, rules: Supervision = QUICK, environ: Mapping[str, str] = os.environ
) -> AsyncIterator[Watched]:
    watched = Watched(None)  # type: ignore[arg-type]
    watched.engine = Engine(engine_spec, environ, on_change=watched.seen.append, metrics=watched, rules=rules)
    await watched.engine.start()
    try:
        yield watched
    finally:
        tree = watched.tree()
        async with asyncio.timeout(3 * LATE):
            await watched.engine.stop(now=True)
        left = alive(tree)
        bury(tree)
    assert not left


async def ready(watched: Watched) -> None:
    async with asyncio.timeout(6 * LATE):
        await watched.engine.wait_ready()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what stays true; what passes must be looked up in `Watched.seen`."""
    async with asyncio.timeout(3 * LATE):
        while not condition():
            await asyncio.sleep(0.01)


async def get(watched: Watched, path: str, key: str | None = None) -> httpx2.Response:
    endpoint = watched.engine.status.endpoint
    assert endpoint is not None
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    async with http.client(trust_env=False) as client:
        return await client.get(f"http://{endpoint.host}:{endpoint.port}{path}", headers=headers)


async def test_an_engine_tells_its_progress_and_then_where_it_listens() -> None:
    async with running(spec()) as watched:
        assert watched.engine.status.state is EngineState.STARTING
        await ready(watched)
        assert "weights loaded" in [status.progress for status in watched.seen]
        assert all(status.endpoint is None for status in watched.seen[:-1])
        endpoint = watched.engine.status.endpoint
        assert endpoint is not None
        assert (await get(watched, "/v1/models", endpoint.key.reveal())).json()["data"][0]["id"] == "smollm2"
        assert (await get(watched, "/v1/models", "another key")).status_code == 401
        assert (await get(watched, "/v1/models")).status_code == 401
        assert (await get(watched, "/adapters")).status_code == 401, "vLLM itself asks only below /v1"
    assert watched.states == ["starting", "ready", "stopped", "stopped"]


async def test_an_engine_listens_on_loopback_only() -> None:
    async with running(spec()) as watched:
        await ready(watched)
        listeners = [
            connection.laddr.ip
            for process in watched.tree()
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listeners
        assert set(listeners) == {"127.0.0.1"}


@pytest.mark.parametrize("victim", [OUTER_WARDEN, INNER_WARDEN, API_SERVER, ENGINE_CORE])
async def test_a_killed_engine_leaves_nothing_behind_and_comes_back(victim: int) -> None:
    repetitions = 5
    async with running(spec("escape;deaf")) as watched:
        endpoints = []
        for _ in range(repetitions):
            await ready(watched)
            endpoints.append(watched.engine.status.endpoint)
            tree = watched.tree()
            assert len(tree) == 5
            tree[victim].kill()
            await until(lambda: not alive(tree))  # noqa: B023 - called before the next round
            await until(lambda: watched.engine.status.endpoint not in endpoints)
        await ready(watched)
        assert watched.engine.status.restarts == watched.restarts["local"] == repetitions
        keys = {endpoint.key.reveal() for endpoint in endpoints if endpoint is not None}
        assert len(keys) == repetitions, "an engine's key is its own"


async def test_an_engine_that_died_starts_again_after_a_second() -> None:
    async with running(spec(), Supervision()) as watched:
        await ready(watched)
        began = time.monotonic()
        watched.tree()[API_SERVER].kill()
        end = await watched.ended()
        assert end.endpoint is None, "nobody is sent to a dead engine"
        assert "was killed by SIGKILL" in end.message
        await until(lambda: watched.restarts["local"] == 1)
        assert near(time.monotonic() - began, 1.0)
        await until(lambda: len(watched.tree()) == 5)


async def test_an_engine_whose_core_died_is_not_waited_for() -> None:
    """vLLM's API server would go on for five seconds and answer every request with an error."""
    async with running(spec()) as watched:
        await ready(watched)
        watched.tree()[ENGINE_CORE].kill()
        end = await watched.ended()
        assert end.endpoint is None
        assert "said that its core is dead" in end.message


async def test_five_deaths_are_the_end_and_it_says_why() -> None:
    rules = replace(QUICK, deaths=5)
    async with running(spec("die=ValueError: no room for the key-value cache"), rules) as watched:
        with pytest.raises(EngineFailed, match="no room for the key-value cache"):
            await ready(watched)
        status = watched.engine.status
        assert status.state is EngineState.FAILED
        assert "died 5 times in 10 minutes" in status.message
        assert "ended with code 1" in status.message
        assert status.restarts == watched.restarts["local"] == 4
        assert not watched.tree()


async def test_a_failed_engine_can_be_started_again_as_another() -> None:
    async with running(spec("die=ValueError: too large"), replace(QUICK, deaths=1)) as watched:
        with pytest.raises(EngineFailed):
            await ready(watched)
        await watched.engine.restart(spec())
        await ready(watched)


async def test_a_command_that_cannot_be_run_fails_at_once() -> None:
    async with running(spec(command=("no/such/vllm",))) as watched:
        with pytest.raises(EngineFailed, match=r"cannot run 'no/such/vllm': No such file or directory"):
            await ready(watched)
        assert not watched.restarts


async def test_arguments_that_vllm_does_not_know_are_named() -> None:
    async with running(spec(args=("--no-such-argument",)), replace(QUICK, deaths=1)) as watched:
        with pytest.raises(EngineFailed, match="unrecognized arguments: --no-such-argument"):
            await ready(watched)


async def test_an_engine_that_hangs_is_killed_and_comes_back() -> None:
    rules = replace(QUICK, poll=0.05, probe_timeout=1.0, misses=2)
    async with running(spec(), rules) as watched:
        await ready(watched)
        tree = watched.tree()
        tree[API_SERVER].send_signal(signal.SIGUSR1)
        assert "did not answer /health 2 times in a row" in (await watched.ended()).message
        assert not alive(tree)
        await ready(watched)


async def test_an_engine_that_is_not_ready_in_time_is_killed() -> None:
    async with running(spec("boot=60", startup_timeout=0.3), replace(QUICK, deaths=1)) as watched:
        with pytest.raises(EngineFailed, match=r"was not ready within 0\.3 s"):
            await ready(watched)
        assert not watched.tree()


async def test_an_idle_engine_stops_gently() -> None:
    async with running(spec(stop_timeout=9 * LATE)) as watched:
        await ready(watched)
        tree = watched.tree()
        async with asyncio.timeout(LATE):
            await watched.engine.stop()
        assert not alive(tree)
        assert watched.engine.status.state is EngineState.STOPPED
        with pytest.raises(EngineFailed):
            await watched.engine.wait_ready()


async def test_an_engine_that_ignores_sigterm_is_gone_within_the_limit() -> None:
    async with running(spec("deaf;escape", stop_timeout=3.0)) as watched:
        await ready(watched)
        tree = watched.tree()
        began = time.monotonic()
        await watched.engine.stop()
        assert near(time.monotonic() - began, 2.0), "it had most of its time, and no more"
        assert not alive(tree)


async def test_a_stop_that_takes_too_long_can_be_hastened() -> None:
    async with running(spec("deaf", stop_timeout=9 * LATE)) as watched:
        await ready(watched)
        gentle = asyncio.create_task(watched.engine.stop())
        await until(lambda: watched.engine.status.state is EngineState.STOPPED)
        async with asyncio.timeout(LATE):
            await watched.engine.stop(now=True)
            await gentle


async def test_an_engine_that_waits_to_be_restarted_can_be_stopped() -> None:
    async with running(spec("die=RuntimeError: oh"), replace(QUICK, first_delay=60, longest_delay=60)) as watched:
        await until(lambda: watched.engine.status.state is EngineState.RESTARTING)
        async with asyncio.timeout(LATE):
            await watched.engine.stop()


async def test_a_restart_with_another_specification_replaces_the_process() -> None:
    async with running(spec()) as watched:
        await ready(watched)
        old = watched.tree()
        await watched.engine.restart(spec(max_loras=2, max_cpu_loras=4, max_lora_rank=64))
        await ready(watched)
        assert not alive(old)
        assert "--max-lora-rank 64" in " ".join(watched.tree()[API_SERVER].cmdline())
        assert not watched.restarts, "only restarts after a death are counted"


@pytest.mark.parametrize("behaviour", ["", "deaf;escape"])
async def test_no_engine_survives_a_gateway_that_is_killed(behaviour: str) -> None:
    engines, rounds = 4, 5
    for _ in range(rounds):
        tree: list[psutil.Process] = []
        host = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.fakes.engine_host", str(engines), behaviour, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert host.stdout is not None
            async with asyncio.timeout(6 * LATE):
                assert await host.stdout.readline() == b"ready\n"
            tree = psutil.Process(host.pid).children(recursive=True)
            assert len(tree) == 5 * engines
            host.kill()
            await until(lambda: not alive(tree))  # noqa: B023 - called before the next round
        finally:
            with suppress(ProcessLookupError):
                host.kill()
            bury(tree)
            await host.wait()


CANARIES = {
    "OPENAI_API_KEY": "canary-openai",
    "ANTHROPIC_API_KEY": "canary-anthropic",
    "NVIDIA_API_KEY": "canary-nvidia",
    "AWS_SECRET_ACCESS_KEY": "canary-aws",
    "GATEWAY_ADMIN_KEY": "canary-admin",
    "VLLM_KEY": "canary-vllm",
    "VLLM_API_KEY": "canary-inherited",
    "HTTPS_PROXY": "http://user:canary-proxy@127.0.0.1:1",
    "ANYTHING_ELSE": "canary-else",
}


async def test_the_engine_sees_no_secret_of_the_gateway_and_shows_none_of_its_own(tmp_path: Any) -> None:
    environ = {**os.environ, **CANARIES, "HF_TOKEN": "canary-hub", "VLLM_SERVER_DEV_MODE": "1"}
    model = tmp_path / "model"
    model.mkdir()
    async with running(spec(model=str(model)), environ=environ) as watched:
        await ready(watched)
        endpoint = watched.engine.status.endpoint
        assert endpoint is not None
        for process in watched.tree():
            variables = process.environ()
            assert not [name for name, value in variables.items() if "canary" in value]
            assert "VLLM_SERVER_DEV_MODE" not in variables
            assert variables["HF_HUB_OFFLINE"] == "1"
            assert variables["VLLM_API_KEY"] == endpoint.key.reveal()
            assert endpoint.key.reveal() not in " ".join(process.cmdline())
        assert endpoint.key.reveal() not in repr(watched.seen)


async def test_the_engines_log_is_ours_and_holds_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "gateway.engine")
    secret = "operators-own-token"
    variables = {"FAKE_VLLM": Secret("shout"), "MY_TOKEN": Secret(secret)}
    async with running(spec(env=variables)) as watched:
        await ready(watched)
        endpoint = watched.engine.status.endpoint
        assert endpoint is not None
        lines = [record.getMessage() for record in caplog.records if record.name == "gateway.engine.output"]
        assert any("environment {" in line and "MY_TOKEN': '***'" in line for line in lines)
        assert not [line for line in lines if secret in line or endpoint.key.reveal() in line]
        assert {record.__dict__["engine"] for record in caplog.records} == {"local"}
