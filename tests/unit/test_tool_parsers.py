"""An engine gets the tool parser of its model's family, and none where the model knows no tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.controlplane.loader import from_mapping
from gateway.controlplane.toolparsers import _MARKS, chat_template, tool_parser, with_tool_parsers

QWEN = "{%- if tools %}# Tools\nreturn a json object within <tool_call></tool_call> XML tags{%- endif %}"
LLAMA = "{%- if tools is not none %}{{- '<|python_tag|>' + tool_call.name }}{%- endif %}"
SMOLLM = "{% for message in messages %}{{'<|im_start|>' + message['role'] + message['content']}}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        (QWEN, "hermes"),
        (LLAMA, "llama3_json"),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", "mistral"),
        ("{% if tools %}<tool_call>\n<function=name>{% endif %}", "qwen3_coder"),
        ("{% if tools %}<tool_call>{name}<arg_key>{% endif %}", "glm45"),
        ("{% if tools %}to=functions <|channel|>commentary{% endif %}", "openai"),
        (SMOLLM, None),
        ("a template that says <tool_call> but never looks at its arguments", None),
        ("", None),
    ],
)
def test_the_template_decides(template, parser):
    assert tool_parser(template) == parser


def arguments(model: Path, *args: str) -> tuple[str, ...]:
    engine = {"model": str(model), "args": list(args)}
    config = from_mapping(
        {"auth": {"required": False}, "upstreams": [{"name": "local", "kind": "vllm", "engine": engine}]}
    )
    completed = with_tool_parsers(config).upstreams[0].engine
    assert completed is not None
    return completed.args


def test_an_engine_of_a_model_with_tools_is_started_with_its_parser(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": QWEN}))
    assert arguments(tmp_path) == ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


def test_the_operator_s_own_parser_is_left_alone(tmp_path):
    (tmp_path / "chat_template.jinja").write_text(QWEN)
    assert arguments(tmp_path, "--tool-call-parser=xlam") == ("--tool-call-parser=xlam",)


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b'{"chat_template": ["a", "list"]}'])
def test_a_tokenizer_that_cannot_be_read_gets_no_parser(tmp_path, content):
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    assert chat_template(tmp_path) == ""
    assert arguments(tmp_path) == ()


def test_a_model_of_the_hub_gets_no_parser():
    assert arguments(Path("Qwen/Qwen3-0.6B")) == ()


@pytest.mark.engine
def test_vllm_has_every_parser_that_is_named_here():
    registry = next(
        Path(__file__).parents[2].glob("var/engine/lib/python3*/site-packages/vllm/tool_parsers/__init__.py")
    )
    assert all(f'"{parser}": (' in registry.read_text() for _, parser in _MARKS)
