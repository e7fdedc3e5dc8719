"""What is written about the configuration is what the code does: reference, example, schema, promised interface."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from gateway.controlplane import accounts, config
from gateway.controlplane.launch import LORA_RANKS
from gateway.controlplane.loader import load
from gateway.controlplane.schema import descriptions, schema_text
from gateway.controlplane.section import Section
from gateway.domain.principal import ADAPTERS_RIGHT, PRIVILEGED_PARAMETERS
from gateway.domain.snapshot import Concurrency, Timeouts
from tests.unit.examples import EXAMPLES, REFERENCE, variables

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "deploy/gateway.example.yaml"
SCHEMA = ROOT / "deploy/gateway.schema.json"

# Where the reference describes each section.
PLACES = {
    config.Config: "",
    config.Server: "server.",
    accounts.Auth: "auth.",
    accounts.ClientKey: "auth.keys[].",
    accounts.Users: "users.",
    accounts.UsersOfOpenWebUI: "users.openwebui.",
    accounts.TeamSettings: "teams[].",
    config.Storage: "storage.",
    accounts.LimitsStore: "limits.",
    accounts.LimitDefaults: "limits.defaults.",
    accounts.ScopeSettings: "limits.defaults.key.",
    accounts.LimitSettings: "auth.keys[].limits.",
    accounts.BudgetSettings: "auth.keys[].budgets[].",
    config.Log: "log.",
    config.Timeouts: "timeouts.",
    config.UpstreamSettings: "upstreams[].",
    config.EngineSettings: "upstreams[].engine.",
    config.AttachedAdapters: "upstreams[].adapters.",
    config.OllamaOptions: "upstreams[].options.",
    config.Concurrency: "upstreams[].concurrency.",
    config.Parameters: "upstreams[].parameters.",
    config.Override: "upstreams[].overrides.MODEL.",
    config.Price: "upstreams[].overrides.MODEL.price.",
    config.ModelSettings: "models[].",
    config.TargetSettings: "models[].targets[].",
    config.OpenWebUI: "openwebui.",
    config.Adapters: "adapters.",
    config.ImportLimits: "adapters.import_limits.",
}
# Described with another section: a base class, and the overrides of `timeouts`.
WITHOUT_A_PLACE = {Section, config.Description, config.TimeoutOverrides}


def default_as_written(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "`{}`"
    if value is None or isinstance(value, bool):
        return f"`{json.dumps(value)}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(text if text[0].isalnum() else json.dumps(text) for text in value)}]`"
    return f"`{value}`" if value != "" else '`""`'


def settings() -> Iterator[tuple[str, str]]:
    for section, place in PLACES.items():
        for name, field in section.model_fields.items():
            default = field.get_default(call_default_factory=True)
            is_section = isinstance(default, BaseModel) and section is config.Config
            if not is_section:  # `server` itself is a heading, its keys are the rows
                yield f"{place}{name}", default_as_written(default)


def test_the_reference_has_every_key_with_its_default_and_nothing_else() -> None:
    rows = dict(re.findall(r"^\| `([^`]+)` \| ([^|]+?) \|", REFERENCE, re.MULTILINE))
    assert rows == dict(settings())


def test_every_section_has_a_place_in_the_reference() -> None:
    known = [*vars(config).values(), *vars(accounts).values()]
    sections = {item for item in known if isinstance(item, type) and issubclass(item, Section)}
    assert sections == PLACES.keys() | WITHOUT_A_PLACE


def test_defaults_are_those_of_the_domain() -> None:
    assert config.Timeouts().model_dump() == {name: getattr(Timeouts(), name) for name in Timeouts.__slots__}
    assert config.Concurrency().model_dump() == {name: getattr(Concurrency(), name) for name in Concurrency.__slots__}
    assert config.TimeoutOverrides.model_fields.keys() == config.Timeouts.model_fields.keys()


def test_ranks_are_those_that_an_engine_can_be_started_with() -> None:
    annotation = config.EngineSettings.model_fields["max_lora_rank"].annotation
    assert get_args(get_args(get_args(annotation)[0])[0]) == LORA_RANKS


def in_file(folder: Path, text: str) -> Path:
    file = folder / "gateway.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: re.findall(r"name: ([\w-]+)", text)[-1])
def test_every_example_of_the_reference_is_right(text: str, tmp_path: Path) -> None:
    if "auth:" not in text:
        text += "auth: {required: false}\n"
    loaded = load(in_file(tmp_path, text), variables(text))
    assert loaded.upstreams


@pytest.mark.parametrize(
    "vendor",
    ["openai", "azure", "deepseek", "qwen", "moonshot", "zhipu", "openrouter", "groq", "mistral", "gemini"],
)
def test_each_vendor_has_an_example(vendor: str) -> None:
    assert any(f"- name: {vendor}\n" in text for text in EXAMPLES)


def test_the_example_file_is_right_and_shows_every_key() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    load(EXAMPLE, variables(text))
    written = set(re.findall(r"(?:^|[\s{,-])([a-z_]+):(?=\s|$)", text, re.MULTILINE))
    needed = {name for section in PLACES for name in section.model_fields}
    assert needed - written == set()


def test_the_example_file_holds_no_key() -> None:
    """A key that stands in a public file would be everybody's key."""
    tree = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    secrets = [tree["auth"]["admin_key"], *(key["key"] for key in tree["auth"]["keys"])]
    secrets += [upstream["api_key"] for upstream in tree["upstreams"] if "api_key" in upstream]
    assert all(secret.startswith("${") for secret in secrets)


def test_the_schema_file_is_current() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), "run: gateway schema > deploy/gateway.schema.json"


def test_the_schema_takes_the_example_and_refuses_a_mistake() -> None:
    tree = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(json.loads(schema_text()))
    assert list(validator.iter_errors(tree)) == []
    tree["server"]["prot"] = 1
    tree["upstreams"][0]["kind"] = "vlm"
    tree["server"]["port"] = "${PORT:-8000}"
    assert {error.json_path for error in validator.iter_errors(tree)} == {"$.server", "$.upstreams[0].kind"}


def test_the_schema_says_what_each_key_is_for() -> None:
    for section in (*PLACES, config.TimeoutOverrides):
        assert descriptions(section).keys() == section.model_fields.keys(), section.__name__


def test_the_schema_names_the_rights_of_a_key() -> None:
    allow = json.loads(schema_text())["$defs"]["ClientKey"]["properties"]["allow"]
    assert set(allow["items"]["anyOf"][0]["enum"]) == {*PRIVILEGED_PARAMETERS, ADAPTERS_RIGHT}
