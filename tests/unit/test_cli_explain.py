"""`gateway explain`: where a request would go, in order, and why, from the file alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.adapter_corpus import TINY, Craft, write_base
from tests.unit.commands import gateway, gateway_here, written

# Nothing listens at these addresses: had it asked anybody, it would have failed or waited.
FILE = """\
auth: {required: false}
upstreams:
  - {name: local, kind: vllm, engine: {model: base, served_name: tiny}}
  - {name: box, kind: vllm, base_url: http://127.0.0.1:9/v1}
  - name: cloud
    kind: openai
    base_url: http://127.0.0.1:9/v1
    api_key: sk-live-4f9a
    models: [big]
    prefix: cloud/
    parameters: {rename: {max_tokens: max_completion_tokens}, set: {user: hidden}}
models:
  - id: assistant
    targets: [{upstream: local, model: tiny}, {upstream: cloud, model: big}, {upstream: local, model: no-such}]
openwebui: {tasks: {title_generation: tiny}}
adapters: {store: store, sources: [adapters.d]}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    write_base(folder / "base")
    Craft(TINY).write(folder / "adapters.d/pirate")
    broken = Craft(TINY)
    broken.config["use_dora"] = True
    broken.write(folder / "adapters.d/broken")
    written(folder, FILE)
    return folder


def explain(place: Path, *arguments: str) -> list[dict[str, Any]]:
    done = gateway_here("explain", "--config", "gateway.yaml", *arguments, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    targets = json.loads(done.stdout)["targets"]
    assert isinstance(targets, list)
    return targets


def test_a_name_of_ones_own_has_its_targets_in_order(place: Path) -> None:
    first, second, third = explain(place, "assistant")
    assert (first["upstream"], first["model"], first["why"]) == ("local", "tiny", "models[0].targets")
    assert (second["upstream"], second["model"], second["address"]) == ("cloud", "big", "http://127.0.0.1:9/v1")
    assert "max_tokens → max_completion_tokens" in second["parameters"]
    assert "sets user" in second["parameters"]
    assert "never" in third["why"], "an engine's models are known: it has no other"


def test_a_prefixed_name_goes_to_its_upstream_under_the_name_it_has_there(place: Path) -> None:
    box, cloud = explain(place, "cloud/big")
    assert (cloud["upstream"], cloud["model"], cloud["known"]) == ("cloud", "big", True)
    assert cloud["why"] == "upstreams[2].models names it"
    assert (box["upstream"], box["known"]) == ("box", False)


def test_an_adapter_of_a_source_folder_is_found_with_its_version(place: Path) -> None:
    (target,) = explain(place, "pirate")
    assert target["upstream"] == "local"
    assert target["model"].startswith("pirate@")
    assert len(target["model"]) == len("pirate@") + 12
    assert "adapters.d/pirate fits its base model" in target["why"]
    (exact,) = explain(place, target["model"])
    assert exact == target


def test_a_task_goes_to_its_own_model(place: Path) -> None:
    (target,) = [t for t in explain(place, "assistant", "--task", "title_generation") if t["known"]]
    assert target["model"] == "tiny"


def test_what_only_an_upstream_can_say_is_said_to_be_unknown(place: Path) -> None:
    done = gateway("explain", "--config", "gateway.yaml", "qwen", cwd=place)
    assert done.returncode == 0
    assert "not named in the file" in done.stdout
    assert "unknown until it is asked" in done.stdout


def test_an_adapter_that_does_not_fit_is_told_with_the_reason(place: Path) -> None:
    done = gateway_here("explain", "--config", "gateway.yaml", "assistant", cwd=place)
    assert "note: adapter broken: " in done.stderr
    assert "DoRA" in done.stderr


def test_nothing_secret_is_printed_and_nothing_written(place: Path) -> None:
    done = gateway_here("explain", "--config", "gateway.yaml", "assistant", cwd=place)
    assert "4f9a" not in done.stdout + done.stderr
    assert "hidden" not in done.stdout
    assert sorted(entry.name for entry in place.iterdir()) == ["adapters.d", "base", "gateway.yaml"]


def test_a_name_that_nobody_can_have_fails_with_the_nearest_one(tmp_path: Path) -> None:
    text = (
        "auth: {required: false}\n"
        "upstreams: [{name: cloud, kind: openai, base_url: http://127.0.0.1:9/v1, models: [big-model]}]\n"
    )
    done = gateway_here("explain", "--config", written(tmp_path, text), "big-modle")
    assert done.returncode == 1
    assert done.stdout == ""
    assert 'did you mean "big-model"?' in done.stderr
