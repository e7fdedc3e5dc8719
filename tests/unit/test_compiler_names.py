"""Which public name is answered where."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.controlplane.compiler import compile
from gateway.controlplane.observed import EngineEndpoint, UpstreamState
from gateway.domain.keys import KeyTable, Pepper
from gateway.domain.principal import Principal
from gateway.domain.secret import Secret
from tests.unit.scenes import adapter, config, openai, seen, up, vllm, where

GPT = "gpt-5-mini"


@pytest.mark.parametrize(
    ("upstreams", "more", "lists", "expected"),
    [
        pytest.param([vllm("a")], {}, {"a": ["m", "n"]}, {"m": ["a:m"], "n": ["a:n"]}, id="all that it lists"),
        pytest.param([vllm("a", prefix="lab/")], {}, {"a": ["m"]}, {"lab/m": ["a:m"]}, id="prefix"),
        pytest.param([vllm("a"), vllm("b")], {}, {"b": ["m"], "a": ["m"]}, {"m": ["a:m", "b:m"]}, id="file order"),
        pytest.param([vllm("a", models=["n"])], {}, {"a": ["m", "n"]}, {"n": ["a:n"]}, id="allow-list"),
        pytest.param([vllm("a", models=["gone"])], {}, {"a": ["m"]}, {}, id="vllm lists all it has"),
        pytest.param([openai("o", models=[GPT])], {}, {}, {GPT: [f"o:{GPT}"]}, id="vendors are not asked"),
        pytest.param([openai("o", models=[])], {}, {"o": ["m"]}, {}, id="an empty allow-list offers nothing"),
        pytest.param(
            [openai("o", models=["new"])], {}, {"o": ["old"]}, {"new": ["o:new"]}, id="vendors have more than they list"
        ),
        pytest.param(
            [{"name": "l", "kind": "ollama", "base_url": "http://h:1", "models": ["llama3", "qwen:4b"]}],
            {},
            {"l": ["llama3:latest", "qwen:8b"]},
            {"llama3": ["l:llama3"]},
            id="ollama's latest",
        ),
        pytest.param(
            [vllm("a"), openai("o", models=[GPT])],
            {"models": [{"id": "best", "targets": [{"upstream": "o", "model": GPT}, {"upstream": "a", "model": "m"}]}]},
            {"a": ["m"]},
            {"best": [f"o:{GPT}", "a:m"], "m": ["a:m"], GPT: [f"o:{GPT}"]},
            id="a name of the file's own, beside the others",
        ),
        pytest.param(
            [vllm("a"), vllm("b")],
            {"models": [{"id": "m", "targets": [{"upstream": "b", "model": "n"}]}]},
            {"a": ["m"], "b": ["n"]},
            {"m": ["b:n"], "n": ["b:n"]},
            id="the file's own name wins",
        ),
    ],
)
def test_each_name_leads_to_its_targets(
    upstreams: list[Any], more: dict[str, Any], lists: dict[str, list[str]], expected: dict[str, list[str]]
) -> None:
    observed = seen({name: up(*models) for name, models in lists.items()})
    assert where(compile(config(upstreams, **more), observed, 1)) == expected


def test_names_are_listed_in_the_order_of_the_file() -> None:
    file = config([vllm("a"), vllm("b")], models=[{"id": "own", "targets": [{"upstream": "b", "model": "z"}]}])
    observed = seen({"a": up("z", "y"), "b": up("x")}, adapter("pirate", "a"))
    assert list(compile(file, observed, 1).cards) == ["own", "z", "y", "x", "pirate"]


def test_an_adapter_has_a_plain_name_that_is_listed_and_an_exact_one_that_is_not() -> None:
    pirate = adapter("pirate", "a", "b")
    observed = seen({"a": up("m", held=[pirate]), "b": up("m", held=[pirate])}, pirate)
    snapshot = compile(config([vllm("a", prefix="lab/"), vllm("b")]), observed, 1)
    places = [f"a:{pirate.engine_name}", f"b:{pirate.engine_name}"]
    assert where(snapshot) == {"lab/m": ["a:m"], "m": ["b:m"], "pirate": places, pirate.engine_name: places}
    assert set(snapshot.cards) == {"lab/m", "m", "pirate"}
    assert {t.adapter for t in snapshot.routes["pirate"].targets} == {pirate.engine_name}
    assert {t.adapter for t in snapshot.routes["m"].targets} == {None}


def test_only_the_current_version_has_the_plain_name() -> None:
    old, new = adapter("pirate", "a", version="1" * 12), adapter("pirate", "a", version="2" * 12, current=False)
    snapshot = compile(config([vllm("a")]), seen({"a": up("m", held=[old])}, old, new), 1)
    assert where(snapshot)["pirate"] == [f"a:{old.engine_name}"]
    assert where(snapshot)[new.engine_name] == [f"a:{new.engine_name}"]


def test_an_adapter_of_somebody_else_is_a_model_of_its_upstream() -> None:
    observed = seen({"a": up("m", foreign=["theirs"])})
    snapshot = compile(config([vllm("a", prefix="lab/")]), observed, 1)
    assert where(snapshot)["lab/theirs"] == ["a:theirs"]
    assert b'"parent":"lab/m"' in snapshot.cards["lab/theirs"]


def test_a_name_of_the_file_can_lead_to_an_adapter_and_on_to_a_vendor() -> None:
    pirate = adapter("pirate", "a")
    targets = [{"upstream": "a", "model": "pirate"}, {"upstream": "o", "model": GPT}]
    file = config([vllm("a"), openai("o", models=[GPT])], models=[{"id": "captain", "targets": targets}])
    snapshot = compile(file, seen({"a": up("m", held=[pirate])}, pirate), 1)
    assert where(snapshot)["captain"] == [f"a:{pirate.engine_name}", f"o:{GPT}"]
    assert snapshot.routes["captain"].targets[0].adapter == pirate.engine_name


def test_the_base_model_of_an_engine_has_its_served_name_before_it_runs() -> None:
    engine = {"name": "local", "kind": "vllm", "engine": {"model": "var/models/Tiny-1", "args": []}}
    snapshot = compile(config([engine]), seen({"local": up(state=UpstreamState.STARTING)}), 1)
    assert where(snapshot) == {"Tiny-1": ["local:Tiny-1"]}
    assert snapshot.upstreams["local"].port == 0


def test_an_engine_is_reached_where_it_listens_with_its_own_key() -> None:
    engine = {"name": "local", "kind": "vllm", "engine": {"model": "m"}}
    endpoint = EngineEndpoint("127.0.0.1", 4711, Secret("of-this-life"))
    record = compile(config([engine]), seen({"local": up("m", endpoint=endpoint)}), 1).upstreams["local"]
    assert (record.scheme, record.host, record.port, record.path) == ("http", "127.0.0.1", 4711, "/v1")
    assert [(name, value.reveal()) for name, value in record.headers] == [("authorization", "Bearer of-this-life")]


def test_the_adapters_at_once_are_those_an_engine_was_started_with_or_the_file_says() -> None:
    engine = {"name": "local", "kind": "vllm", "engine": {"model": "m"}}
    file = config([engine, vllm("a", adapters={"max_loras": 3}), vllm("b")])
    upstreams = compile(file, seen({"local": replace(up("m"), max_loras=2)}), 1).upstreams
    assert {name: record.max_loras for name, record in upstreams.items()} == {"local": 2, "a": 3, "b": 0}


def test_a_name_of_the_file_can_lead_to_one_version_of_an_adapter() -> None:
    old, new = adapter("pirate", "a", version="1" * 12), adapter("pirate", "a", version="2" * 12, current=False)
    model = {"id": "captain", "targets": [{"upstream": "a", "model": new.engine_name}]}
    snapshot = compile(config([vllm("a")], models=[model]), seen({"a": up("m")}, old, new), 1)
    assert where(snapshot)["captain"] == [f"a:{new.engine_name}"]
    assert snapshot.routes["captain"].targets[0].adapter == new.engine_name


def test_a_name_that_a_model_has_is_its_own_even_where_it_is_not_listed() -> None:
    hidden = up("pirate", state=UpstreamState.DOWN, since=0)
    observed = seen({"a": up("m"), "b": hidden}, adapter("pirate", "a"), now=1e6)
    snapshot = compile(config([vllm("a"), vllm("b")]), observed, 1)
    assert where(snapshot)["pirate"] == ["b:pirate"]
    assert "pirate" not in snapshot.cards


def test_an_upstream_carries_what_the_file_says_of_it() -> None:
    azure = openai(
        "azure",
        base_url="https://x.openai.azure.com:8443/openai/",
        headers={"api-key": "azure-0123456789abcdef"},
        query={"api-version": "2026-01-01 preview"},
        timeouts={"connect": 7},
        concurrency={"limit": 3},
        parameters={"rename": {"max_tokens": "max_completion_tokens"}, "drop": ["seed"]},
        overrides={
            "o9": {"parameters": {"drop": ["top_p"], "set": {"store": False}}, "price": {"input": 2, "output": 8}}
        },
        models=["o9"],
    )
    snapshot = compile(config([azure], timeouts={"total": 99}), seen({}), 1)
    record, target = snapshot.upstreams["azure"], snapshot.routes["o9"].targets[0]
    assert (record.host, record.port, record.path) == ("x.openai.azure.com", 8443, "/openai")
    assert [(name, value.reveal()) for name, value in record.headers] == [("api-key", "azure-0123456789abcdef")]
    assert record.query == "api-version=2026-01-01+preview"
    assert (record.timeouts.connect, record.timeouts.total, record.concurrency.limit) == (7, 99, 3)
    assert target.parameters.drop == {"seed", "top_p"}
    assert dict(target.parameters.rename) == {"max_tokens": "max_completion_tokens"}
    assert dict(target.parameters.set) == {"store": False}
    assert target.price is not None
    assert (target.price.input, target.price.output) == (2, 8)
    assert "azure-0123456789abcdef" not in repr(snapshot)


def test_only_vendors_are_sent_the_developer_role_and_only_toolless_models_lose_their_tools() -> None:
    upstreams = [
        openai("o", models=["gpt"]),
        {"name": "e", "kind": "vllm", "engine": {"model": "plain"}},
        {"name": "t", "kind": "vllm", "engine": {"model": "able", "args": ["--enable-auto-tool-choice"]}},
        vllm("a", overrides={"m": {"tools": False}}),
    ]
    routes = compile(config(upstreams), seen({"a": up("m", "n")}), 1).routes
    said = {name: (route.targets[0].developer_role, route.targets[0].strip_tools) for name, route in routes.items()}
    assert said == {
        "gpt": (True, False),
        "plain": (False, True),
        "able": (False, False),
        "m": (False, True),
        "n": (False, False),
    }


def test_keys_are_those_of_the_moment() -> None:
    principals, pepper = {b"digest": Principal("webui")}, Pepper(Secret("pepper"))
    observed = replace(seen({}), keys=KeyTable(pepper, principals, b"admin's"))
    snapshot = compile(config([vllm("a")], openwebui={"tasks": {"*": "small"}}), observed, 1)
    assert (snapshot.keys, snapshot.admin_key, snapshot.pepper) == (principals, b"admin's", pepper)
    assert snapshot.auth_required
    assert dict(snapshot.task_models) == {"*": "small"}
