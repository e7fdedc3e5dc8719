"""Which of vLLM's tool parsers reads a model's tool calls.

Without `--enable-auto-tool-choice` and a parser vLLM answers 400 to a request with tools.  How a model writes its calls
stands in its chat template; the marks are those of the families' own templates, and the names those of vLLM 0.32
(vllm/tool_parsers).  A template that knows no tools gets no parser.
"""

from __future__ import annotations

import json
from pathlib import Path

from gateway.controlplane.config import Config, EngineSettings

_MAX_FILE = 8 * 1024 * 1024  # bytes of a tokenizer's configuration
_ARGUMENT = "--tool-call-parser"

#: A mark in the template → vLLM's parser.  The first that is found counts: special before general.
_MARKS = (
    ("<｜tool▁calls▁begin｜>", "deepseek_v3"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("<|python_tag|>", "llama3_json"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|channel|>commentary", "openai"),
    ("<minimax:tool_call>", "minimax_m2"),
    ("<function=", "qwen3_coder"),
    ("<arg_key>", "glm45"),
    ("<tool_call>", "hermes"),
)


def tool_parser(template: str) -> str | None:
    """vLLM's parser for what a model with this chat template writes; None where it knows no tools."""
    if "tools" not in template:
        return None
    return next((parser for mark, parser in _MARKS if mark in template), None)


def chat_template(model: Path) -> str:
    """The chat template in a model's folder, "" where there is none that can be read."""
    file = model / "chat_template.jinja"
    if file.is_file() and file.stat().st_size <= _MAX_FILE:
        return file.read_text(encoding="utf-8", errors="replace")
    file = model / "tokenizer_config.json"
    if not file.is_file() or file.stat().st_size > _MAX_FILE:
        return ""
    try:
        template = json.loads(file.read_bytes()).get("chat_template")
    except (ValueError, AttributeError):
        return ""
    return template if isinstance(template, str) else ""


def with_tool_parsers(config: Config) -> Config:
    """The configuration, with a tool parser for each engine whose model (a local folder) has tools and whose `args` do
    not name one."""
    upstreams = tuple(
        upstream if upstream.engine is None else upstream.model_copy(update={"engine": _completed(upstream.engine)})
        for upstream in config.upstreams
    )
    return config.model_copy(update={"upstreams": upstreams})


def _completed(engine: EngineSettings) -> EngineSettings:
    if any(arg.partition("=")[0].replace("_", "-") == _ARGUMENT for arg in engine.args):
        return engine
    parser = tool_parser(chat_template(Path(engine.model)))
    if parser is None:
        return engine
    return engine.model_copy(update={"args": (*engine.args, "--enable-auto-tool-choice", _ARGUMENT, parser)})
