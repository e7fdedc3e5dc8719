"""`gateway check`: right files pass, wrong ones are told place by place, and --probe says what answers."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from tests.unit.commands import ROOT, gateway, gateway_here, nobody, serving, written

KEY = "9f4c1d7e2b8a6053c7e1f2a4b6d8091e"
OPEN = "auth: {required: false}\n"
INTERFACE = """\
server:
  host: 127.0.0.1            # anything else is refused while auth.required is false
  port: 8000
  workers: 1
auth:
  required: true             # false: no key needed (loopback only)
  admin_key: ${GATEWAY_ADMIN_KEY}
  keys:                      # optional static keys; more are created at run time
    - {name: openwebui, key: "${OPENWEBUI_KEY}"}
storage:
  url: sqlite:///var/gateway.db
limits:
  url: memory://
upstreams:
  - name: local
    kind: vllm
    engine:                          # the gateway runs it …
      model: var/models/SmolLM2-135M-Instruct
      served_name: smollm2           # public name of the base model
      command: [var/engine/bin/vllm] # environment of the engine; default: vllm on PATH
      args: ["--max-model-len", "2048"]
  - name: gpu-box
    kind: vllm
    base_url: http://10.0.0.5:8001/v1   # … or attaches to one that runs already
    api_key: ${VLLM_KEY:-EMPTY}
  - name: ollama
    kind: ollama
    base_url: http://127.0.0.1:11434
    options: {num_ctx: 8192, keep_alive: 10m}
  - name: openai
    kind: openai                     # OpenAI and every API that speaks its dialect
    base_url: https://api.openai.com/v1
    api_key: ${OPENAI_API_KEY}
    models: [gpt-5-mini]             # what to offer; omitted: all that it lists
    prefix: openai/                  # optional: public names become openai/gpt-5-mini
models:                              # optional: public names of your own
  - id: assistant
    targets:                         # in order; the next is tried while nothing was sent
      - {upstream: local, model: smollm2}
      - {upstream: openai, model: gpt-5-mini}
adapters:
  store: var/adapters                # content-addressed, owned by the gateway
  sources: [adapters.d]              # folders whose adapters are offered at start and watched
"""


def test_the_file_that_the_interface_promises_is_right(tmp_path: Path) -> None:
    environ = {"GATEWAY_ADMIN_KEY": KEY[::-1], "OPENWEBUI_KEY": KEY, "OPENAI_API_KEY": "sk-proj-7d1e"}
    done = gateway("check", "--config", written(tmp_path, INTERFACE), env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert "is right" in done.stdout


def test_mistakes_are_told_with_file_line_and_place_on_stderr(tmp_path: Path) -> None:
    file = written(tmp_path, INTERFACE.replace("kind: ollama", "kind: olama"))
    done = gateway("check", "--config", file, env={"GATEWAY_ADMIN_KEY": KEY, "OPENWEBUI_KEY": KEY})
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{file}:9: auth.keys[0].key: is the admin key as well")
    assert lines[1].startswith(f"{file}:27: upstreams[2].kind: must be 'vllm', 'ollama' or 'openai'")
    assert lines[2].startswith(f"{file}:33: upstreams[3].api_key: needs the environment variable OPENAI_API_KEY")
    assert KEY not in done.stderr


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = gateway_here("check", "--config", tmp_path / "none.yaml")
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path}/none.yaml: cannot be read: No such file or directory\n"


def test_serve_starts_nothing_with_a_wrong_file(tmp_path: Path) -> None:
    file = written(tmp_path, OPEN + "upstreams: [{name: a, kind: openai, base_url: http://127.0.0.1:1/v1}]\n")
    done = gateway_here("serve", "--config", file, "--host", "0.0.0.0", "--workers", "4")
    assert done.returncode == 1
    places = [line.split(": ")[1] for line in done.stderr.splitlines()]
    assert sorted(places) == ["auth.required", "server.workers"], "options are held against the rules like the file"


def test_probe_says_who_answers_with_what(tmp_path: Path) -> None:
    pages = {"/v1/models": {"data": [{"id": "alpha"}, {"id": "beta"}]}}
    with serving(pages, key="upstream-key") as url, nobody() as dead:
        text = f"""{OPEN}upstreams:
  - {{name: alive, kind: openai, base_url: "{url}/v1", api_key: upstream-key, prefix: x/}}
  - {{name: picky, kind: openai, base_url: "{url}/v1", api_key: upstream-key, models: [alpha, gamma]}}
  - {{name: keyless, kind: openai, base_url: "{url}/v1"}}
  - {{name: unlisted, kind: openai, base_url: "{url}/other", api_key: upstream-key, models: [delta]}}
  - {{name: dead, kind: openai, base_url: "{dead}/v1"}}
"""
        done = gateway_here("check", "--config", written(tmp_path, text), "--probe")
    rows = {line.split()[0]: line for line in done.stdout.splitlines()[2:]}
    assert "x/alpha, x/beta" in rows["alive"]
    assert "does not list gamma" in rows["picky"]
    assert "401" in rows["keyless"]
    assert "api_key" in rows["keyless"]
    assert "404" in rows["unlisted"] or "has no /other/models" in rows["unlisted"]
    assert "delta" in rows["unlisted"]
    assert dead.removeprefix("http://") in rows["dead"]
    assert done.returncode == 1
    assert done.stderr == "2 of 5 upstreams cannot be used now: keyless, dead\n"
    assert "upstream-key" not in done.stdout


def test_probe_passes_when_all_answer(tmp_path: Path) -> None:
    with serving({"/v1/models": {"data": [{"id": "alpha"}]}}) as url:
        text = f'{OPEN}upstreams: [{{name: alive, kind: openai, base_url: "{url}/v1"}}]\n'
        done = gateway_here("check", "--config", written(tmp_path, text), "--probe")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_schema_is_printed_as_it_lies_in_deploy() -> None:
    assert gateway_here("schema").stdout == (ROOT / "deploy/gateway.schema.json").read_text(encoding="utf-8")


def test_version_is_the_distributions() -> None:
    assert gateway_here("version").stdout == version("lora-gateway") + "\n"


@pytest.mark.parametrize("command", ["serve", "check", "explain", "adapters", "schema", "version"])
def test_every_command_is_in_the_help(command: str, help_text: str) -> None:
    assert command in help_text


@pytest.fixture(scope="module")
def help_text() -> str:
    return gateway("--help").stdout
