"""The real parts: a gateway process that runs the real vLLM with the two sample adapters, and llama.cpp's server as
its third party."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil

from gateway.server import listen
from tests import http
from tests.gateway import ROOT, GatewayProcess, gateway_process, sample

MODEL = ROOT / "var" / "models" / "SmolLM2-135M-Instruct"
GGUF = ROOT / "var" / "models" / "SmolLM2-135M-Instruct.gguf"
ADAPTERS = ROOT / "var" / "adapters.d"
VLLM = ROOT / "var" / "engine" / "bin" / "vllm"
LLAMA_KEY = "sk-llama-third-party-0123456789"
BASE, PIRATE, JSON, LLAMA = "smollm2", "pirate", "json-answers", "smollm2-gguf"
BOOT = 300.0  # seconds; the slowest boot seen on two busy cores was under 90


@dataclass
class Served:
    """A gateway process with real engines behind it."""

    gateway: GatewayProcess

    @property
    def engine(self) -> psutil.Process:
        """The engine's API server.  Raises LookupError while there is none."""
        assert self.gateway.process is not None
        found: psutil.Process | None = None
        for child in psutil.Process(self.gateway.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if str(VLLM) in child.cmdline() and "serve" in child.cmdline() and "--port" in child.cmdline():
                    found = child
        if found is None:
            raise LookupError("no engine runs")
        return found

    @property
    def engine_address(self) -> tuple[str, str]:
        """The engine's own URL, and the key that only its own environment holds."""
        engine = self.engine
        line, key = engine.cmdline(), engine.environ()["VLLM_API_KEY"]
        return f"http://127.0.0.1:{line[line.index('--port') + 1]}", key

    def engine_page(self, path: str) -> httpx2.Response:
        """A page of the engine itself."""
        url, key = self.engine_address
        return _page(url + path, headers={"authorization": f"Bearer {key}"})

    def engine_metric(self, name: str, **labels: str) -> float:
        """A metric of the engine: of its core's last step, which is some time ago while it is frozen."""
        return sample(self.engine_page("/metrics").text, name, **labels)

    def engine_took(self) -> int:
        """How many requests the engine's server has taken and not ended.  It may lose count where clients leave: only
        that it grows tells something."""
        return int(self.engine_page("/load").json()["server_load"])

    def metric(self, name: str, **labels: str) -> float:
        """A metric of the gateway."""
        return sample(_page(f"{self.gateway.url}/metrics").text, name, **labels)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The engine's core stands still: its server takes requests, and none gets any further, however fast the
        machine."""
        (core,) = (child for child in self.engine.children(recursive=True) if child.name() == "VLLM::EngineCore")
        core.suspend()
        try:
            yield
        finally:
            core.resume()

    def wait_for_models(self, *names: str, seconds: float = BOOT) -> None:
        """Returns when all of these are listed and answer."""
        deadline = time.monotonic() + seconds
        missing = set(names)
        while missing:
            assert self.gateway.process is not None
            if self.gateway.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"not served: {missing}\n{self.gateway.log.read_text()[-4000:]}")
            with contextlib.suppress(httpx2.HTTPError):
                listed = http.get(f"{self.gateway.v1}/models", headers=self.gateway.headers).json()["data"]
                rows = http.get(f"{self.gateway.url}/admin/v1/adapters", headers=self.gateway.admin_headers).json()
                ready = {row["name"] for row in rows["data"] if row["phase"] == "Ready"}
                answering = {model["id"] for model in listed if "parent" not in model} | ready
                up = http.get(f"{self.gateway.url}/readyz").status_code == 200
                missing = set(names) - answering if up else set(names)
            time.sleep(0.1)  # another process: there is no event to wait for


def _page(url: str, **options: Any) -> httpx2.Response:
    return http.get(url, timeout=30, **options).raise_for_status()


@contextlib.contextmanager
def llama_server(model: Path = GGUF) -> Iterator[str]:
    """llama.cpp's server with this model; yields its base URL."""
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.llama_server", str(model), str(port)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx2.HTTPError):
                if http.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            assert process.poll() is None, "llama.cpp's server ended"
            assert time.monotonic() < deadline, "llama.cpp's server did not become ready"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def served(
    folder: Path,
    local: Mapping[str, Any] | None = None,
    third: Mapping[str, Any] | None = None,
    sections: Mapping[str, Any] | None = None,
) -> Iterator[Served]:
    """The gateway with both engines, ready.  `local` and `third` are settings of the two upstreams, `sections` of the
    file, in place of what stands here or beside it."""
    for needed in (VLLM, MODEL, GGUF, ADAPTERS):
        assert needed.exists(), f"{needed.relative_to(ROOT)} is missing: run `make engine` first"
    with llama_server() as third_party:
        config = {
            "log": {"format": "json"},
            "upstreams": [
                {
                    "name": "local",
                    "kind": "vllm",
                    "engine": {
                        "model": str(MODEL),
                        "served_name": BASE,
                        "command": [str(VLLM)],
                        "args": [
                            "--dtype", "bfloat16", "--max-model-len", "2048", "--kv-cache-memory-bytes", "256M",
                            "--enforce-eager", "--max-num-seqs", "32", "--max-num-batched-tokens", "128",
                            "--enable-server-load-tracking",
                            "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
                        ],
                    },
                    "concurrency": {"limit": 8, "queue": 64, "queue_timeout": 60},
                    **(local or {}),
                },
                {"name": "third", "kind": "openai", "base_url": third_party, "api_key": LLAMA_KEY, **(third or {})},
            ],
            "adapters": {"store": str(folder / "store"), "sources": [str(ADAPTERS)]},
            **(sections or {}),
        }  # fmt: skip
        with gateway_process(config, folder) as gateway:
            running = Served(gateway)
            running.wait_for_models(BASE, PIRATE, JSON, LLAMA)
            yield running
