"""The objects of /v1/models: what the OpenAI SDK needs, and what Open WebUI takes as a model's settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types import Model

from gateway.controlplane.compiler import compile
from gateway.controlplane.config import Config
from gateway.controlplane.observed import AdapterStatus, Phase, UpstreamState, UpstreamStatus
from gateway.domain.listing import ListedModel
from tests.unit.scenes import adapter, config, openai, seen, up, vllm

LONG = 131_072


def cards(file: Config, statuses: dict[str, UpstreamStatus], *adapters: Any) -> dict[str, dict[str, Any]]:
    return {name: json.loads(card) for name, card in compile(file, seen(statuses, *adapters), 1).cards.items()}


def everything_in(value: object) -> Iterator[object]:
    yield value
    children: Any = ()
    if isinstance(value, dict):
        children = (*value, *value.values())
    elif isinstance(value, list):
        children = value
    for child in children:
        yield from everything_in(child)


def test_a_plain_model_says_what_is_known_and_nothing_else() -> None:
    card = cards(config([vllm("a")]), {"a": up(ListedModel("m", context_length=2048, created=7))})["m"]
    assert card == {
        "id": "m",
        "object": "model",
        "created": 7,
        "owned_by": "a",
        "name": "m",
        "context_length": 2048,
        "max_model_len": 2048,
        "status": {"value": "available"},
        "info": {"meta": {"capabilities": {"usage": True, "builtin_tools": False}, "tags": [{"name": "a"}]}},
    }
    Model.model_validate(card, strict=True)


def test_an_adapter_names_its_base_and_has_its_context() -> None:
    pirate = adapter("pirate", "a")
    status = up(ListedModel("m", context_length=2048, vision=False), held=[pirate])
    card = cards(config([vllm("a", prefix="lab/")]), {"a": status}, pirate)["pirate"]
    assert (card["id"], card["name"], card["parent"], card["context_length"]) == ("pirate", "pirate", "lab/m", 2048)
    assert card["info"]["meta"]["description"] == "LoRA adapter on lab/m"
    assert {"name": "adapter"} in card["info"]["meta"]["tags"]
    assert card["created"] == 1_700_000_000, "vLLM's own is the time of the request"


def test_no_null_and_nothing_that_open_webui_misreads() -> None:
    pirate = adapter("pirate", "a")
    statuses = {"a": up("m", held=[pirate], foreign=["theirs"]), "o": up("gpt")}
    file = config([vllm("a"), openai("o")], models=[{"id": "own", "targets": [{"upstream": "o", "model": "x"}]}])
    for card in cards(file, statuses, pirate).values():
        found = list(everything_in(card))
        assert None not in found
        assert not {"pipeline", "pipelines"} & {value for value in found if isinstance(value, str)}
        assert card["name"]


@pytest.mark.parametrize(
    ("facts", "builtin_tools"),
    [
        ({"tools": True, "context_length": 32_768}, True),
        ({"tools": True, "context_length": 32_767}, False),
        ({"tools": True}, False),
        ({"context_length": LONG}, False),
        ({"tools": False, "context_length": LONG}, False),
    ],
)
def test_open_webui_adds_its_tools_only_where_they_are_understood_and_fit(
    facts: dict[str, Any], builtin_tools: bool
) -> None:
    listed = cards(config([vllm("a")]), {"a": up(ListedModel("m", **facts))})["m"]
    configured = cards(config([vllm("a", overrides={"m": facts})]), {"a": up("m")})["m"]
    for card in (listed, configured):
        assert card["info"]["meta"]["capabilities"]["builtin_tools"] is builtin_tools


def test_an_engine_has_tools_if_it_was_started_with_a_parser_for_them() -> None:
    engine = {"model": "able", "args": ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]}
    listed = up(ListedModel("able", context_length=LONG))
    card = cards(config([{"name": "e", "kind": "vllm", "engine": engine}]), {"e": listed})["able"]
    assert card["info"]["meta"]["capabilities"]["builtin_tools"] is True


def test_the_file_describes_a_model_better_than_its_upstream() -> None:
    said = {
        "name": "The good one",
        "description": "Answers.",
        "tags": ["house", "fast"],
        "context_length": 1000,
        "vision": True,
    }
    status = {"a": up(ListedModel("m", name="m-v1", context_length=2000, vision=False))}
    overridden = cards(config([vllm("a", overrides={"m": said})]), status)["m"]
    own = {"id": "own", "targets": [{"upstream": "a", "model": "m"}], **said}
    named = cards(config([vllm("a")], models=[own]), status)["own"]
    for card in (overridden, named):
        meta = card["info"]["meta"]
        assert (card["name"], card["context_length"], meta["description"]) == ("The good one", 1000, "Answers.")
        assert meta["tags"] == [{"name": "house"}, {"name": "fast"}]
        assert meta["capabilities"]["vision"] is True


def test_a_name_with_several_targets_promises_what_all_of_them_keep() -> None:
    statuses = {
        "a": up(ListedModel("m", context_length=8000, tools=True, vision=True)),
        "b": up(ListedModel("m", context_length=4000, tools=True, vision=False)),
    }
    card = cards(config([vllm("a"), vllm("b")]), statuses)["m"]
    assert card["context_length"] == 4000
    assert card["info"]["meta"]["capabilities"]["vision"] is False


def test_embedding_models_are_listed_and_not_offered_for_chats() -> None:
    card = cards(config([vllm("a")]), {"a": up(ListedModel("bge", embedding=True))})["bge"]
    assert card["info"]["meta"]["hidden"] is True


UP, STARTING, DOWN = up("m"), up("m", state=UpstreamState.STARTING), up("m", state=UpstreamState.DOWN, since=999)


@pytest.mark.parametrize(
    ("pirate", "status", "value"),
    [
        (adapter("pirate", "a"), UP, "loaded"),
        (adapter("pirate", "a", "gone"), UP, "loaded"),
        (adapter("pirate", "a", phase=Phase.LOADING), UP, "loading"),
        (adapter("pirate", "a", phase=Phase.LOADING), STARTING, "loading"),
        (adapter("pirate", "a", phase=Phase.UNLOADED), UP, "unloaded"),
        (adapter("pirate", "a", phase=Phase.UNLOADED), STARTING, "unloaded"),
        (adapter("pirate", "a", phase=Phase.LOADING), DOWN, "unloaded"),
        (adapter("pirate", "a", phase=Phase.LOADING, refused={"a": "no"}), UP, "unloaded"),
    ],
)
def test_open_webui_sees_whether_an_adapter_is_loaded(
    pirate: AdapterStatus, status: UpstreamStatus, value: str
) -> None:
    assert cards(config([vllm("a")]), {"a": status}, pirate)["pirate"]["status"] == {"value": value}


def test_open_webui_offers_to_eject_adapters_and_nothing_else() -> None:
    """Open WebUI takes a model without the key `status` for loaded, and an unknown word for neither."""
    pirate = adapter("pirate", "a")
    targets = [{"upstream": "a", "model": "pirate"}]
    file = config([vllm("a"), openai("o")], models=[{"id": "captain", "targets": targets}])
    listed = cards(file, {"a": up("m", held=[pirate], foreign=["theirs"]), "o": up("gpt")}, pirate)
    ejectable = {name for name, card in listed.items() if card["status"]["value"] in ("loaded", "sleeping")}
    assert ejectable == {"pirate"}
    assert len(listed) == 5
    assert all(card["status"]["value"] for card in listed.values())
