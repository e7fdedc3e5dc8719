"""A stand-in for the `vllm` command: a real process tree that boots in a blink and dies as vLLM does.

    python fake_vllm.py serve MODEL --served-model-name NAME --host H --port P [...]

An API server, its child (EngineCore) and grandchild (Worker).  As with vLLM 0.32:

- arguments that vLLM does not know end it with code 2,
- the key is VLLM_API_KEY, asked for below /v1 and nowhere else; with --middleware, which must be importable, it is
  asked for everywhere but at /health,
- adapters can be loaded only where VLLM_ALLOW_RUNTIME_LORA_UPDATING is 1, and only folders that hold a
  `adapter_config.json`; the bodies and codes are those of the real one,
- the children outlive an API server that is killed with SIGKILL,
- when the EngineCore dies, the log says so, /health turns 503, and the API server ends five seconds later.

The variable FAKE_VLLM holds words that make it behave badly:

    die=TEXT       ends at boot with code 1, after TEXT on standard error
    boot=SECONDS   takes so long to become ready
    deaf           ignores SIGTERM, and so do its children
    escape         the Worker moves to a session of its own
    shout          writes its whole environment to the log
SIGUSR1 makes the API server hang: connections are taken and never answered.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

BEHAVIOUR = dict(word.partition("=")[::2] for word in os.environ.get("FAKE_VLLM", "").split(";"))


def main() -> None:
    options = parse(sys.argv[1:])
    say("INFO", f"vLLM server version 0.32.0 (fake), model {options.model}")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((options.host, options.port))  # early, as vLLM does; it listens when it is ready
    if "deaf" in BEHAVIOUR:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "die" in BEHAVIOUR:
        sys.exit(BEHAVIOUR["die"])
    if "shout" in BEHAVIOUR:
        say("INFO", f"environment {dict(os.environ)}")
    in_place, tell = os.pipe()
    engine_core = spawn(lambda: run_engine_core(tell))
    os.close(tell)
    os.read(in_place, 1)
    for percent in (0, 50, 100):
        sys.stderr.write(f"Loading safetensors checkpoint shards: {percent:3}% Completed\r")
    say("INFO", "Loading weights took 0.01 seconds")
    time.sleep(float(BEHAVIOUR.get("boot", 0)))
    serve(listener, Server(options, engine_core))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vllm serve", allow_abbrev=False)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--max-loras", type=int, default=1)
    parser.add_argument("--max-cpu-loras", type=int)
    parser.add_argument("--max-lora-rank", type=int, choices=[1, 8, 16, 32, 64, 128, 256, 320, 512], default=16)
    parser.add_argument("--max-num-queued-reqs", type=int)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--middleware", action="append", default=[])
    parser.add_argument("--disable-uvicorn-access-log", action="store_true")
    parser.add_argument("--disable-fastapi-docs", action="store_true")
    options = parser.parse_args(arguments)
    for middleware in options.middleware:
        module, _, name = middleware.rpartition(".")
        getattr(importlib.import_module(module), name)
    return options


def say(level: str, text: str) -> None:
    stamp = time.strftime("%m-%d %H:%M:%S")
    sys.stderr.write(f"(APIServer pid={os.getpid()}) {level} {stamp} [fake.py:1] {text}\n")


def spawn(body: Callable[[], NoReturn]) -> int:
    child = os.fork()
    if child == 0:
        body()
    return child


def run_engine_core(tell: int) -> NoReturn:
    spawn(lambda: run_worker(tell))
    os.close(tell)
    sleep_for_ever()


def run_worker(tell: int) -> NoReturn:
    if "escape" in BEHAVIOUR:
        os.setsid()
    os.write(tell, b".")
    sleep_for_ever()


def sleep_for_ever() -> NoReturn:
    while True:
        signal.pause()


class Server:
    """The state of the API server."""

    def __init__(self, options: argparse.Namespace, engine_core: int) -> None:
        self.options = options
        self.engine_core = engine_core
        self.key = os.environ["VLLM_API_KEY"]
        self.guarded = "/" if options.middleware else "/v1"
        self.updating = options.enable_lora and os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "1"
        self.adapters: dict[str, str] = {}
        self.lock = threading.Lock()
        self.awake = threading.Event()
        self.awake.set()
        self.dead = False

    def health(self) -> tuple[int, str]:
        return (503 if self.dead else 200), ""

    def lose_engine_core(self) -> None:
        say("ERROR", "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.")
        self.dead = True
        threading.Timer(5, os._exit, [0]).start()

    def models(self) -> list[dict[str, Any]]:
        base = {"id": self.options.served_model_name, "root": self.options.model, "parent": None}
        entries = [{**base, "max_model_len": self.options.max_model_len}]
        with self.lock:
            for name, path in self.adapters.items():
                entries.append({"id": name, "root": path, "parent": base["id"], "max_model_len": None})
        return [{**entry, "object": "model", "created": 1, "owned_by": "vllm"} for entry in entries]

    def load(self, name: str, path: str) -> tuple[int, Any]:
        with self.lock:
            if name in self.adapters:
                text = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, …"
                return 400, error(text, "InvalidUserInput", 400)
            if not Path(path, "adapter_config.json").is_file():
                return 404, error(f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError", 404)
            self.adapters[name] = path
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, name: str) -> tuple[int, Any]:
        with self.lock:
            if self.adapters.pop(name, None) is None:
                return 404, error(f"The lora adapter '{name}' cannot be found.", "NotFoundError", 404)
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    def chat(self, body: dict[str, Any]) -> tuple[int, Any]:
        known = [entry["id"] for entry in self.models()]
        model = body.get("model") or known[0]
        if model not in known:
            return 404, error(f"The model `{model}` does not exist.", "NotFoundError", 404, "model")
        message = {"role": "assistant", "content": f"I am {model}."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model}
        if not body.get("stream"):
            return 200, answer | {"choices": [choice], "usage": usage}
        said = {"choices": [{"index": 0, "delta": message, "finish_reason": "stop"}]}
        events = [
            answer | {"object": "chat.completion.chunk"} | part for part in (said, {"choices": [], "usage": usage})
        ]
        return 200, "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


def error(message: str, kind: str, code: int, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def serve(listener: socket.socket, server: Server) -> None:
    class Exchange(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.route({"/health": server.health, "/v1/models": self.list_models})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
            routes = {"/v1/chat/completions": lambda: server.chat(body)}
            if server.updating:
                routes["/v1/load_lora_adapter"] = lambda: server.load(body["lora_name"], body["lora_path"])
                routes["/v1/unload_lora_adapter"] = lambda: server.unload(body["lora_name"])
            self.route(routes)

        def list_models(self) -> tuple[int, Any]:
            return 200, {"object": "list", "data": server.models()}

        def route(self, routes: dict[str, Callable[[], tuple[int, Any]]]) -> None:
            server.awake.wait()
            status: int
            answer: Any
            if (
                self.path.startswith(server.guarded)
                and self.path != "/health"
                and self.headers["authorization"] != f"Bearer {server.key}"
            ):
                status, answer = 401, {"error": "Unauthorized"}
            elif self.path in routes:
                status, answer = routes[self.path]()
            else:
                status, answer = 404, {"detail": "Not Found"}
            plain = isinstance(answer, str)
            text = str(answer) if plain else json.dumps(answer)
            self.send_response(status)
            kind = "text/event-stream" if text.startswith("data: ") else "text/plain"
            self.send_header("content-type", kind if plain else "application/json")
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(listener.getsockname(), Exchange, bind_and_activate=False)
    http.socket.close()
    http.socket = listener
    http.daemon_threads = True
    signal.signal(signal.SIGUSR1, lambda *_: server.awake.clear())
    if "deaf" not in BEHAVIOUR:
        signal.signal(signal.SIGTERM, lambda *_: stop(0, server.engine_core))
    signal.signal(signal.SIGCHLD, lambda *_: server.lose_engine_core())
    http.server_activate()
    say("INFO", "Application startup complete.")
    http.serve_forever()


def stop(code: int, engine_core: int) -> NoReturn:
    os.kill(engine_core, signal.SIGTERM)
    os._exit(code)


if __name__ == "__main__":
    main()
