"""What is measured: the bare upstream, nginx, the gateway and LiteLLM's proxy, each started on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jwt
from crowd import fill
from exact import Unanswered, ask, post
from measure import WORKLOADS, chat

HERE = Path(__file__).parent
FOLDER = HERE.parent / "var" / "bench"  # all that is built, installed and written
MODELS = sorted({workload.model for workload in WORKLOADS})
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 15


class LeftOut(Exception):
    """A target that cannot be had on this machine; the message says why."""


class Broken(Exception):
    """A target that is here but does not start; the message says how."""


@dataclass(frozen=True)
class Target:
    """A server that runs. `headers`: what it wants with each request; `pid`: the top of its process tree."""

    name: str
    port: int
    headers: Mapping[str, str]
    pid: int
    start_seconds: float


@dataclass(frozen=True)
class Command:
    """How to run a target; `environ` is added to ours. `enter`: what is done once it answers with the key that it shall
    want (its port → what it wants with each request from then on)."""

    argv: list[str | Path]
    environ: dict[str, str]
    enter: Callable[[int], Mapping[str, str]] | None = None


# Prepares a target: (folder for its files, its port, the upstream's port, the key it shall want) → how to run it.
# Raises LeftOut.
Recipe = Callable[[Path, int, int, str], Command]


def compile_c(name: str) -> Path:
    """Builds bench/NAME.c, unless what is there is newer."""
    source, binary = HERE / f"{name}.c", FOLDER / name
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        FOLDER.mkdir(parents=True, exist_ok=True)
        flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra"]
        subprocess.run([os.environ.get("CC", "cc"), *flags, "-o", binary, source], check=True)
    return binary


def bare(_work: Path, port: int, _upstream: int, _key: str) -> Command:
    """The fake upstream itself: what the load costs without anything in between."""
    return Command([compile_c("upstream"), str(port)], {})


def gateway(work: Path, port: int, upstream: int, key: str) -> Command:
    """All that a user gets by default is on: keys, routing, metrics, accounting, the access log."""
    config = {
        "auth": {"keys": [{"name": "bench", "key": "${BENCH_KEY}"}]},
        "storage": {"url": f"sqlite:///{work / 'gateway.db'}"},
        "upstreams": [
            {
                "name": "fake",
                "kind": "openai",
                "base_url": f"http://127.0.0.1:{upstream}/v1",
                "api_key": "bench-upstream",
                "models": MODELS,
                "concurrency": {"limit": 1024},
            }
        ],
    }
    file = _write(work / "gateway.yaml", json.dumps(config, indent=2))  # JSON is YAML
    command = Path(sys.executable).parent / "gateway"
    return Command([command, "serve", "--config", file, "--port", str(port)], {"BENCH_KEY": key})


def accounts(work: Path, port: int, upstream: int, key: str) -> Command:
    """The gateway with a key made at run time and a signed user of Open WebUI, and the limits and budgets that
    docs/limits.md begins with: of the key, the team, the user and the model."""
    command = gateway(work, port, upstream, key)
    file = work / "gateway.yaml"
    config = json.loads(file.read_text())
    often, at_once = {"requests_per_minute": 10**8}, {"concurrent": 10**6}
    key_limits = {**often, "tokens_per_minute": 10**8, **at_once}
    admin, secret = (secrets.token_urlsafe(32) for _ in range(2))
    config["auth"]["admin_key"] = "${BENCH_ADMIN}"
    config["users"] = {"openwebui": {"jwt_secret": "${BENCH_JWT}"}}
    config["teams"] = [{"name": "bench", "limits": often}]
    config["limits"] = {"defaults": {"user": {"limits": often, "budgets": [{"money": 10**6, "per": "day"}]}}}
    price = {"input": 0.25, "output": 2}
    config["upstreams"][0]["overrides"] = {model: {"price": price, "limits": at_once} for model in MODELS}
    _write(file, json.dumps(config, indent=2))

    def enter(port: int) -> Mapping[str, str]:
        budget = {"money": 10**6, "per": "month"}
        made = {"name": f"bench-{time.time_ns()}", "team": "bench", "limits": key_limits, "budgets": [budget]}
        body, _ = post(port, "/admin/v1/keys", {"Authorization": f"Bearer {admin}"}, made)
        now = int(time.time())
        claims = {"iss": "open-webui", "sub": "anna", "role": "user", "iat": now, "exp": now + 86_400}
        token = jwt.encode(claims, secret, "HS256")
        return {"Authorization": f"Bearer {json.loads(body)['key']}", "X-OpenWebUI-User-Jwt": token}

    return Command(command.argv, command.environ | {"BENCH_ADMIN": admin, "BENCH_JWT": secret}, enter)


def crowded(work: Path, port: int, upstream: int, key: str) -> Command:
    """The same with ten thousand other keys, and a million rows in the ledger."""
    for old in work.glob("gateway*"):
        old.unlink()
    command = accounts(work, port, upstream, key)
    fill(json.loads((work / "gateway.yaml").read_text())["storage"]["url"])
    return command


def nginx(work: Path, port: int, upstream: int, _key: str) -> Command:
    """A plain reverse proxy, one process, as any user: no keys, no log. What relaying costs at the least."""
    temporary = "\n".join(
        f"  {kind}_temp_path {work / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = f"""
daemon off;
master_process off;
pid {work / "nginx.pid"};
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
{temporary}
  keepalive_requests 100000000;
  client_max_body_size 64m;
  client_body_buffer_size 256k;
  upstream fake {{
    server 127.0.0.1:{upstream};
    keepalive 512;
    keepalive_requests 100000000;
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://fake;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""
    return Command([_nginx_binary(), "-e", "stderr", "-p", work, "-c", _write(work / "nginx.conf", config)], {})


def litellm(work: Path, port: int, upstream: int, key: str) -> Command:
    """LiteLLM's proxy as its documentation advises for production, with a master key; nothing that calls home."""
    config = {
        "model_list": [
            {
                "model_name": model,
                "litellm_params": {
                    "model": f"openai/{model}",
                    "api_base": f"http://127.0.0.1:{upstream}/v1",
                    "api_key": "bench-upstream",
                },
            }
            for model in MODELS
        ],
        "general_settings": {"master_key": "os.environ/BENCH_KEY"},
        "litellm_settings": {"telemetry": False, "num_retries": 0, "request_timeout": 600, "set_verbose": False},
    }
    file = _write(work / "litellm.yaml", json.dumps(config, indent=2))
    environ = {
        "BENCH_KEY": key,
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
        "LITELLM_TELEMETRY": "False",
        "DISABLE_ADMIN_UI": "True",
        "HF_HUB_OFFLINE": "1",
    }
    options = ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1", "--telemetry", "False"]
    return Command([_litellm_environment() / "bin/litellm", "--config", file, *options], environ)


RECIPES: dict[str, Recipe] = {
    "bare": bare, "nginx": nginx, "gateway": gateway, "accounts": accounts, "crowded": crowded, "litellm": litellm,
}  # fmt: skip


@contextlib.contextmanager
def running(name: str, upstream_port: int = 0) -> Iterator[Target]:
    """A target that answers, until the block ends. Raises LeftOut or Broken."""
    work = FOLDER / "run" / name
    work.mkdir(parents=True, exist_ok=True)
    port, key = _free_port(), f"sk-{secrets.token_urlsafe(32)}"
    command = RECIPES[name](work, port, upstream_port, key)
    # No target outlives this harness, however it ends. (setpriv is part of util-linux.)
    guard = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    log = work / "log"
    start = time.monotonic()
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                [*guard, *command.argv],
                cwd=work,
                env=os.environ | command.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise Broken(f"{name} cannot be started: {error}") from error
    try:
        headers: Mapping[str, str] = {"Authorization": f"Bearer {key}"}
        _wait_until_it_answers(name, process, port, headers, log)
        seconds = time.monotonic() - start
        if command.enter is not None:
            headers = command.enter(port)
        yield Target(name, port, headers, process.pid, seconds)
    finally:
        _stop(process)


def _wait_until_it_answers(
    name: str, process: subprocess.Popen[bytes], port: int, headers: Mapping[str, str], log: Path
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    refusal = "no answer yet"
    while process.poll() is None and time.monotonic() < deadline:
        try:
            ask(port, headers, chat(MODELS[0], 1, stream=False))
            return
        except Unanswered as error:
            refusal = str(error)
            time.sleep(0.05)
    how = f"exited with {process.returncode}" if process.returncode is not None else f"is not ready ({refusal})"
    raise Broken(f"{name} {how}; the end of {log}:\n{log.read_text(errors='replace')[-1500:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the process group, politely first."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
            return


def _nginx_binary() -> Path:
    """The installed nginx, else Debian's package unpacked into our folder: nothing is installed, no service starts."""
    installed = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if installed:
        return Path(installed)
    unpacked = FOLDER / "nginx"
    binary = unpacked / "usr/sbin/nginx"
    if not binary.exists():
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            raise LeftOut("nginx is not installed, and there is no apt-get to fetch it with: install nginx")
        unpacked.mkdir(exist_ok=True)
        fetch = ["apt-get", "download", "nginx"]
        if not _run(fetch, unpacked) and not (_run(["apt-get", "update"], unpacked) and _run(fetch, unpacked)):
            raise LeftOut("nginx is not installed, and `apt-get download nginx` fails: install nginx")
        for package in unpacked.glob("nginx_*.deb"):
            _run(["dpkg-deb", "-x", package.name, "."], unpacked)
    if not _run([str(binary), "-v"], unpacked):
        raise LeftOut(f"{binary} does not run here (a library is missing?): install nginx")
    return binary


def _litellm_environment() -> Path:
    """The environment var/bench/litellm with exactly what bench/litellm.txt lists."""
    environment, wanted = FOLDER / "litellm", (HERE / "litellm.txt")
    stamp = environment / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted.read_text():
        return environment
    print("installing LiteLLM into an environment of its own (about a minute, 0.8 GB) …", file=sys.stderr, flush=True)
    create = [sys.executable, "-m", "venv", "--clear", str(environment)]
    # --no-deps: the list is whole; why, it says itself.
    install = [
        str(environment / "bin/python"),
        "-m",
        "pip",
        "install",
        "-qq",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    for command in (create, [*install, "-r", str(wanted)]):
        if subprocess.run(command, check=False).returncode:
            raise LeftOut(f"LiteLLM cannot be installed: `{' '.join(command)}` fails")
    stamp.write_text(wanted.read_text())
    return environment


def _free_port() -> int:
    """A port that is free now; nothing holds it until the target binds it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(command: list[str], folder: Path) -> bool:
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
