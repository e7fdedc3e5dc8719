"""`gateway adapters check` and `list`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.fakes.adapter_corpus import TINY, Craft, write_base
from tests.gateway import running_gateway
from tests.unit.commands import gateway, gateway_here, nobody, serving, written

KEY = "9f4c1d7e2b8a6053c7e1f2a4b6d8091e"
ADMIN = {"GATEWAY_ADMIN_KEY": KEY}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    write_base(folder / "tiny-llama")
    Craft(TINY).write(folder / "right")
    large = Craft(TINY)
    large.config["r"] = 32
    for name in TINY.modules():
        large.factors(name, 32)
    large.write(folder / "large")
    written(
        folder,
        "auth: {required: false}\n"
        "upstreams: [{name: local, kind: vllm, engine: {model: tiny-llama, max_lora_rank: 16}}]\n",
    )
    return folder


def test_a_right_adapter_passes(place: Path) -> None:
    done = gateway("adapters", "check", "right", "--base", "tiny-llama", "--max-lora-rank", 16, cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert "would be loaded and served rightly on tiny-llama" in done.stdout


def test_a_wrong_one_fails_with_reason_and_remedy(place: Path) -> None:
    done = gateway_here("adapters", "check", "large", "--base", "tiny-llama", "--max-lora-rank", 16, cwd=place)
    assert done.returncode == 1
    assert "would not be served rightly" in done.stdout
    assert "error: " in done.stderr
    assert "[rank_too_large]" in done.stderr


def test_json_has_the_whole_verdict(place: Path) -> None:
    done = gateway_here(
        "adapters", "check", "large", "--base", "tiny-llama", "--max-lora-rank", 16, "--json", cwd=place
    )
    verdict = json.loads(done.stdout)
    assert (done.returncode, verdict["ok"]) == (1, False)
    (finding,) = verdict["findings"]
    assert finding["code"] == "rank_too_large"
    assert finding["message"]
    assert finding["remedy"]


def test_base_and_limit_come_from_the_configuration(place: Path) -> None:
    done = gateway_here("adapters", "check", "large", "--config", "gateway.yaml", cwd=place)
    assert done.returncode == 1
    assert "[rank_too_large]" in done.stderr
    done = gateway_here("adapters", "check", "right", "--config", "gateway.yaml", "--engine", "locl", cwd=place)
    assert done.returncode == 1
    assert 'did you mean "local"?' in done.stderr


def test_base_and_limit_come_from_a_running_gateway_here(place: Path) -> None:
    engine = {"model": str(place / "tiny-llama"), "max_lora_rank": 16, "restarts": 0}
    rows = [{"name": "local", "kind": "vllm", "engine": engine}, {"name": "cloud", "kind": "openai", "engine": None}]
    with serving({"/admin/v1/upstreams": {"object": "list", "data": rows}}, key=KEY) as url:
        asked = ("adapters", "check", "large", "--url", url, "--engine")
        done = gateway_here(*asked, "local", cwd=place, env=ADMIN)
        assert done.returncode == 1
        assert "[rank_too_large]" in done.stderr
        assert 'did you mean "local"' in gateway_here(*asked, "locale", cwd=place, env=ADMIN).stderr
        assert (
            "refuses the admin key" in gateway_here(*asked, "local", cwd=place, env={"GATEWAY_ADMIN_KEY": "x"}).stderr
        )


def test_without_a_base_the_shapes_are_said_not_to_be_compared(place: Path) -> None:
    done = gateway_here("adapters", "check", "right", cwd=place)
    assert done.returncode == 0
    assert "[base_unknown]" in done.stderr


def test_a_base_that_is_not_there_is_no_fault_of_the_adapter(place: Path) -> None:
    done = gateway_here("adapters", "check", "right", "--base", "nowhere", cwd=place)
    assert done.returncode == 1
    assert done.stderr == "the base model nowhere is not on this machine: give its folder with --base\n"


def test_a_rank_that_vllm_has_not_is_refused(place: Path) -> None:
    done = gateway_here("adapters", "check", "right", "--max-lora-rank", 10, cwd=place)
    assert done.returncode == 1
    assert "must be one of 1, 8, 16" in done.stderr


ROWS = [
    {
        "name": "pirate",
        "version": "3f9a1c2b4d5e",
        "digest": "3f9a1c2b4d5e" + "0" * 52,
        "phase": "Ready",
        "reason": "",
        "base": "tiny",
        "upstreams": ["local"],
    },
    {
        "name": "evil\x1b[2J",
        "version": "",
        "digest": "",
        "phase": "Failed",
        "reason": "a NaN",
        "base": "",
        "upstreams": [],
    },
]


def test_adapters_of_a_running_gateway_are_listed() -> None:
    with serving({"/admin/v1/adapters": {"object": "list", "data": ROWS}}, key=KEY) as url:
        table = gateway_here("adapters", "list", "--url", url, env=ADMIN)
        document = gateway_here("adapters", "list", "--json", env={**ADMIN, "GATEWAY_URL": url})
    assert table.returncode == 0
    _, pirate, evil = table.stdout.splitlines()
    assert pirate.split() == ["pirate", "3f9a1c2b4d5e", "Ready", "local", "tiny"]
    assert "a NaN" in evil
    assert "\x1b" not in table.stdout, "a name cannot write to the terminal"
    assert json.loads(document.stdout) == {"object": "list", "data": ROWS}


def test_a_gateway_that_is_not_there_is_named() -> None:
    with nobody() as url:
        done = gateway_here("adapters", "list", "--url", url, env=ADMIN)
    assert done.returncode == 1
    assert f"the gateway at {url} does not answer" in done.stderr
    assert "set GATEWAY_ADMIN_KEY" in gateway_here("adapters", "list").stderr


def test_something_else_that_answers_is_not_taken_for_a_gateway_here() -> None:
    with serving({"/admin/v1/adapters": ["hello"]}) as url:
        done = gateway_here("adapters", "list", "--url", url, env=ADMIN)
    assert done.returncode == 1
    assert "is not this gateway" in done.stderr


async def test_the_real_gateway_answers_these_commands(tmp_path: Path) -> None:
    upstreams = [{"name": "cloud", "kind": "openai", "base_url": "http://127.0.0.1:9/v1", "models": ["big"]}]
    async with running_gateway({"upstreams": upstreams}, tmp_path) as running:
        environ = {"GATEWAY_URL": running.url, "GATEWAY_ADMIN_KEY": running.admin_key}
        listed, checked = await asyncio.gather(
            asyncio.to_thread(gateway, "adapters", "list", env=environ),
            asyncio.to_thread(gateway, "adapters", "check", tmp_path, "--engine", "cloud", env=environ),
        )
    assert (listed.returncode, listed.stdout) == (0, "This gateway has no adapters.\n")
    assert checked.returncode == 1
    assert "the gateway has no engine cloud" in checked.stderr
