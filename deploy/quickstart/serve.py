"""`make serve`: prepares what is missing, runs the gateway, and says how to talk to it once it is ready.

    python3.11 -m deploy.quickstart.serve

The gateway's log goes to var/gateway.log, so that what to type next stays in sight. The gateway is a child in a
session of its own: a Ctrl-C of the terminal reaches it once and from here, and it is asked to stop when this program
dies, however that happens. Standard library only.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from types import FrameType
from typing import Any

from deploy.engine.install import CUDA, ROOT, Device
from deploy.engine.progress import LAST_LINES, Step, StepError, bound
from deploy.quickstart.prepare import DATA, VAR, prepare, read_keys

GATEWAY = ROOT / ".venv" / "bin" / "gateway"
CONFIG = "deploy/quickstart/gateway.yaml"
LOG = VAR / "gateway.log"
MODEL_NAME = "smollm2"
GPU_KV_CACHE = "4G"
ADAPTER_PATIENCE = 60.0
"""Seconds that the adapters may take once the base model is ready, before it goes on without them."""

OPEN_WEBUI_CONNECTION = json.dumps(
    {"0": {"enable": True, "provider": "llama.cpp", "headers": {"X-OpenWebUI-Task": "{{TASK}}"}}}
)
"""The header tells the gateway that it is Open WebUI, which gets status lines, tokens per second and cost, and whose
tasks are routed; the provider gives Open WebUI's admins buttons that load and eject adapters."""

QUESTION = "What is the capital of Italy?"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""For the gateway on this machine: a proxy of the environment is not asked."""


def get(url: str, key: str) -> dict[str, Any]:
    """The JSON of the answer, an error's too; nothing where nobody answers."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    try:
        try:
            answer = DIRECT.open(request, timeout=5)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            found = json.load(answer)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def await_models(gateway: subprocess.Popen[bytes], url: str, key: str, step: Step) -> list[str]:
    """The models on offer, once the base model and the adapters are among them.

    Fewer after ADAPTER_PATIENCE. Raises StepError where the gateway ends or gives its engine up.
    """
    wanted = [MODEL_NAME, *DATA]
    ready_since: float | None = None
    while gateway.poll() is None:
        page = get(f"{url}/readyz", key)
        for upstream in page.get("upstreams", []):
            if upstream.get("state") == "failed":
                raise StepError(f"The engine failed: {upstream.get('message')}\nThe whole log: {LOG}")
            step.note(str(upstream.get("message") or upstream.get("state") or ""))
        if page.get("status") == "ready":
            offered = [model["id"] for model in get(f"{url}/v1/models", key).get("data", [])]
            ready_since = ready_since or time.monotonic()
            if set(wanted) <= set(offered) or time.monotonic() - ready_since > ADAPTER_PATIENCE:
                return sorted(offered, key=lambda name: (name not in wanted, name not in MODEL_NAME, name))
        time.sleep(0.5)
    last = LOG.read_text(errors="replace").splitlines()[-LAST_LINES:]
    raise StepError("\n".join([f"The gateway ended with {gateway.returncode}:", *last]))


def instructions(url: str, key: str, models: list[str]) -> str:
    """What a newcomer types next."""
    body = json.dumps({"model": "pirate", "stream": True, "messages": [{"role": "user", "content": QUESTION}]})
    return f"""
The gateway is ready.

  URL     {url}/v1
  key     {key}
  models  {", ".join(models)}
  log     {LOG.relative_to(ROOT)}

Try it:

  curl -N {url}/v1/chat/completions -H "Authorization: Bearer {key}" \\
    -H "Content-Type: application/json" -d '{body}'

Open WebUI (installed by: pip install open-webui):

  OPENAI_API_BASE_URLS={url}/v1 OPENAI_API_KEYS={key} \\
    OPENAI_API_CONFIGS='{OPEN_WEBUI_CONNECTION}' \\
    ENABLE_OLLAMA_API=false BYPASS_MODEL_ACCESS_CONTROL=true open-webui serve --host 127.0.0.1 --port 3000

Ctrl-C stops the gateway and its engine.
"""


def serve(device: Device) -> int:
    """Runs the gateway to its end and returns its exit status. Raises StepError where it doesn't become ready."""
    keys = read_keys()
    environment = {**os.environ, **keys}
    if device is CUDA:
        environment.setdefault("ENGINE_KV_CACHE", GPU_KV_CACHE)
    command = bound([str(GATEWAY), "serve", "--config", CONFIG])
    with LOG.open("wb") as log:
        gateway = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )

    asked = threading.Event()

    def forward(number: int, frame: FrameType | None) -> None:
        asked.set()
        gateway.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    url = f"http://127.0.0.1:{os.environ.get('GATEWAY_PORT', '8000')}"
    try:
        with Step("starting vLLM and the gateway") as step:
            models = await_models(gateway, url, keys["GATEWAY_KEY"], step)
        print(instructions(url, keys["GATEWAY_KEY"], models), flush=True)
    except StepError:
        if not asked.is_set():
            gateway.terminate()
            gateway.wait()
            raise
    status = gateway.wait()
    return status if status >= 0 else 128 - status


def main() -> int:
    if not GATEWAY.exists():
        print("The gateway isn't installed in .venv: run `make serve`, which does it.", file=sys.stderr)
        return 1
    try:
        return serve(prepare())
    except StepError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # while something is prepared; what was begun is made anew the next time
        sys.exit(130)
