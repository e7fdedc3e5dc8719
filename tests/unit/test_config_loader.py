"""The configuration as the gateway gets it: what was read, what was left out, and what never shows."""

from __future__ import annotations

import json
import pickle
import secrets
from pathlib import Path
from typing import Any

import pytest

from gateway.controlplane.config import Config
from gateway.controlplane.loader import ConfigError, from_mapping, load
from gateway.controlplane.rules import is_sample
from gateway.controlplane.schema import schema_text
from gateway.domain.snapshot import ParameterPolicy, Timeouts

KEY = "9f4c1d7e2b8a6053c7e1f2a4b6d8091e"
CLOUD: dict[str, Any] = {"name": "cloud", "kind": "openai", "base_url": "http://127.0.0.1:9/v1"}


def config(**sections: Any) -> Config:
    return from_mapping({"auth": {"required": False}, "upstreams": [CLOUD], **sections})


def upstream(**keys: Any) -> Config:
    return config(upstreams=[{**CLOUD, **keys}])


def test_the_smallest_file() -> None:
    assert from_mapping({"upstreams": [CLOUD], "auth": {"keys": [{"name": "me", "key": KEY}]}}).auth.required


def test_a_key_without_a_value_counts_as_left_out(tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text(
        "server:\nauth: {required: false, keys: }\n"
        "upstreams:\n  - {name: a, kind: openai, base_url: 'http://127.0.0.1/v1', headers: , models: }\n"
        "models:\n  # - id: later\nadapters:\n  sources:\n"
    )
    loaded = load(tmp_path / "gateway.yaml", {})
    assert loaded.server.port == 8000
    assert loaded.models == ()
    assert loaded.upstreams[0].models is None


def test_a_null_that_is_to_be_sent_is_kept() -> None:
    assert upstream(parameters={"set": {"thinking": None}}).upstreams[0].parameters.set == {"thinking": None}


@pytest.mark.parametrize("text", ["", "# nothing\n", "[]", "text", "- a\n"])
def test_a_file_without_sections_is_told_what_it_needs(text: str, tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "gateway.yaml", {})
    assert caught.value.problems[0].message in ("is missing", "must be a mapping")


def test_numbers_and_booleans_may_come_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text(
        "server: {port: '${PORT}', write_stall: '${STALL:-1.5}'}\nauth: {required: '${AUTH}'}\n"
        "upstreams:\n  - {name: a, kind: vllm, engine: {model: m, max_lora_rank: '${RANK}'}}\n"
    )
    loaded = load(tmp_path / "gateway.yaml", {"PORT": "9000", "AUTH": "false", "RANK": "64"})
    assert (loaded.server.port, loaded.server.write_stall, loaded.auth.required) == (9000, 1.5, False)
    assert loaded.upstreams[0].engine is not None
    assert loaded.upstreams[0].engine.max_lora_rank == 64


def test_options_of_the_command_line_stand_in_for_the_file(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(json.dumps({"server": {"workers": 4}, "auth": {"required": False}, "upstreams": [CLOUD]}))
    assert load(file, {}, {("server", "workers"): 1, ("server", "port"): 0}).server.port == 0
    with pytest.raises(ConfigError):
        load(file, {})


def test_the_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config().server.port = 1


SECRETS = {
    "auth": {"admin_key": "a1-" + KEY, "keys": [{"name": "me", "key": "a2-" + KEY}]},
    "upstreams": [
        {
            **CLOUD,
            "api_key": "a3-" + KEY,
            "headers": {"x-key": "a4-" + KEY},
            "query": {"code": "a5-" + KEY},
        },
        {"name": "local", "kind": "vllm", "engine": {"model": "m", "env": {"HF_TOKEN": "a6-" + KEY}}},
    ],
}


def test_no_secret_shows_wherever_the_configuration_is_printed() -> None:
    loaded = from_mapping(SECRETS)
    shown = [repr(loaded), str(loaded), loaded.model_dump_json(), str(loaded.model_dump()), schema_text()]
    shown += [repr(section) for section in (loaded.auth, *loaded.upstreams)]
    assert all(KEY not in text for text in shown)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(loaded)


def test_secrets_are_there_for_those_who_ask() -> None:
    loaded = from_mapping(SECRETS)
    assert loaded.auth.admin_key is not None
    assert loaded.auth.admin_key.reveal() == "a1-" + KEY
    assert loaded.upstreams[0].headers["x-key"].reveal() == "a4-" + KEY


def test_no_error_shows_a_secret_or_its_variable_s_value(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(json.dumps({**SECRETS, "server": {"port": "${PORT}", "prot": 1}, "log": {"level": "${LEVEL}"}}))
    with pytest.raises(ConfigError) as caught:
        load(file, {"PORT": "eighty-" + KEY, "LEVEL": "loud-" + KEY})
    assert len(caught.value.problems) == 3
    assert KEY not in str(caught.value) + repr(caught.value) + repr(caught.value.problems)
    assert caught.value.__cause__ is None


def test_random_keys_are_never_taken_for_samples() -> None:
    makers = (lambda: secrets.token_hex(8), lambda: secrets.token_hex(32), lambda: "sk-" + secrets.token_urlsafe(24))
    assert not any(is_sample(make()) for make in makers for _ in range(2000))


@pytest.mark.parametrize(
    "key",
    ["sk-1234", "changeme", "test", "EMPTY", "your-api-key", "sk-your-api-key-here", "change-this-secret-key-please",
     "0123456789abcdef0123456789abcdef", "sk-1234567890abcdef", "xxxxxxxxxxxxxxxxxxxx", "password12345678",
     "admin-admin-admin"],
)  # fmt: skip
def test_keys_out_of_documentation_are_refused(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping({"auth": {"keys": [{"name": "me", "key": key}]}, "upstreams": [CLOUD]})
    assert [problem.place for problem in caught.value.problems] == ["auth.keys[0].key"]


def test_parameters_of_a_model_are_added_to_those_of_its_upstream() -> None:
    loaded = upstream(
        parameters={"rename": {"a": "b"}, "drop": ["x"], "allow": ["k"], "set": {"s": 1, "t": 1}},
        overrides={"big": {"parameters": {"rename": {"c": "d"}, "drop": ["y"], "allow": "*", "set": {"t": 2}}}},
    ).upstreams[0]
    general = ParameterPolicy(frozenset({"k"}), {"a": "b"}, frozenset({"x"}), {"s": 1, "t": 1})
    assert loaded.policy_for("small") == general
    special = ParameterPolicy(frozenset({"k", "*"}), {"a": "b", "c": "d"}, frozenset({"x", "y"}), {"s": 1, "t": 2})
    assert loaded.policy_for("big") == special


def test_time_outs_of_an_upstream_stand_over_those_of_the_file() -> None:
    loaded = config(timeouts={"connect": 3, "answer": 50}, upstreams=[{**CLOUD, "timeouts": {"answer": 70}}])
    assert loaded.timeouts_for(loaded.upstreams[0]) == Timeouts(connect=3, answer=70)


def test_a_short_total_alone_is_meant_and_right() -> None:
    assert config(timeouts={"total": 30}).timeouts.total == 30
    assert upstream(timeouts={"total": 30}).upstreams[0].timeouts.total == 30


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_needs_no_key(host: str) -> None:
    assert config(server={"host": host}).server.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gateway.local", "localhost.example.com"])
def test_anything_else_does(host: str) -> None:
    with pytest.raises(ConfigError, match="anyone could use the gateway"):
        config(server={"host": host})


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("http://[::1]:8000/v1/", "http://[::1]:8000/v1"),
        ("https://api.example.com", "https://api.example.com"),
        ("http://vllm:8000/team-a/v1", "http://vllm:8000/team-a/v1"),
    ],
)
def test_base_urls_that_are_right(url: str, kept: str) -> None:
    assert upstream(base_url=url).upstreams[0].base_url == kept


@pytest.mark.parametrize(
    "url",
    ["", "ftp://a/v1", "http:///v1", "http://a b/v1", "http://a\n/v1", "http://a:0/v1", "http://a:99999/v1", "http://-a/v1",
     "//a/v1", "http://a/v1#x", "http://ä/v1", "http://a\\b/v1", "http://[::1/v1"],
)  # fmt: skip
def test_base_urls_that_are_wrong(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        upstream(base_url=url)
    assert [problem.place for problem in caught.value.problems] == ["upstreams[0].base_url"]


def test_nested_places_are_named_as_people_write_them() -> None:
    with pytest.raises(ConfigError) as caught:
        upstream(overrides={"gpt-4.1": {"tols": True}})
    assert caught.value.problems[0].place == 'upstreams[0].overrides["gpt-4.1"].tols'
    assert "tools" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("written", "seconds"), [(60, 60), ("60", 60), ("1.5", 1.5), ("never", None), (None, 900)], ids=str
)
def test_a_lazy_adapter_leaves_after_a_while_or_never(written: object, seconds: float | None) -> None:
    assert config(adapters={"idle_unload": written}).adapters.idle_unload == seconds


def test_a_path_of_an_engine_elsewhere_is_kept_as_it_is() -> None:
    box = {"name": "box", "kind": "vllm", "base_url": "http://box/v1", "adapters": {"store": "/mnt/a/"}}
    assert config(upstreams=[box]).upstreams[0].adapters.store == "/mnt/a"
    with pytest.raises(ConfigError, match="absolute path"):
        config(upstreams=[{**box, "adapters": {"store": "~/a"}}])


def test_a_name_that_may_become_an_adapter_s_is_right() -> None:
    """Adapters are added while the gateway runs, wherever an engine takes any."""
    engine: dict[str, Any] = {"name": "e", "kind": "vllm", "engine": {"model": "base"}}
    model = {"id": "captain", "targets": [{"upstream": "e", "model": "pirate"}]}
    sections = {"models": [model], "openwebui": {"tasks": {"*": "parrot"}}}
    with pytest.raises(ConfigError) as caught:
        config(upstreams=[engine], **sections)
    assert len(caught.value.problems) == 2
    with_room = {**engine, "engine": {**engine["engine"], "max_loras": 4}}
    assert config(upstreams=[with_room], **sections).models
    assert config(upstreams=[engine], adapters={"sources": ["adapters.d"]}, **sections).models
