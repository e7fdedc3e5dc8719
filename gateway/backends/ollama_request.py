"""OpenAI's requests in Ollama's form: the bodies of /api/chat, /api/generate and /api/embed, without the model's name.

What Ollama takes is in its api/types.go (August 2026).  It answers some mistakes of a client with 500, which would
look like a fault of its own; those are told here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.domain.errors import InvalidRequest
from gateway.domain.snapshot import Target

#: A request in Ollama's form, and the client's parameters that found no place in it.
Translated = tuple[dict[str, Any], tuple[str, ...]]

_DATA_URL = re.compile(r"data:(?:image/[a-zA-Z0-9.+-]{1,40})?;base64,")
#: As Ollama itself reads them at its own /v1 (openai/openai.go, thinkFromReasoningEffort).
_EFFORTS: Mapping[str, bool | str] = {
    "none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "max", "max": "max",
}  # fmt: skip
#: OpenAI's and vLLM's names of what Ollama calls otherwise.
_RENAMED = {"max_tokens": "num_predict", "max_completion_tokens": "num_predict", "repetition_penalty": "repeat_penalty"}
_NUMBERS = frozenset(
    """temperature top_p top_k min_p typical_p seed frequency_penalty presence_penalty repeat_penalty repeat_last_n
    num_keep num_predict num_ctx""".split()
)


def chat(sent: Mapping[str, Any], target: Target) -> Translated:
    """The body of /api/chat."""
    tool_names = _tool_names(sent["messages"])
    body: dict[str, Any] = {"messages": [_message(message, tool_names) for message in sent["messages"]]}
    tools, lost = _tools(sent, target.strip_tools)
    if tools:
        body["tools"] = tools
    if (form := _format(sent)) is not None:
        body["format"] = form
    if sent.get("logprobs"):
        body["logprobs"] = True
        body["top_logprobs"] = sent.get("top_logprobs") or 0
    think, unknown = _think(sent, target.strip_thinking)
    if think is not None:
        body["think"] = think
    return body, lost + unknown


def generate(sent: Mapping[str, Any]) -> Translated:
    """The body of /api/generate.  Raw, as completions are: no template is put around the prompt (only a suffix needs
    one), and nothing of the answer is taken for thoughts and set apart."""
    prompt = sent["prompt"]
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:  # an empty one would load the model, or unload it
        raise InvalidRequest("'prompt' must be one text that is not empty for this model.", param="prompt")
    body: dict[str, Any] = {"prompt": prompt, "raw": True, "think": False}
    if suffix := sent.get("suffix"):
        body |= {"suffix": suffix, "raw": False}
    logprobs = sent.get("logprobs")
    if isinstance(logprobs, int) and not isinstance(logprobs, bool):
        body |= {"logprobs": True, "top_logprobs": logprobs}
    return body, ()


def embed(sent: Mapping[str, Any]) -> Translated:
    """The body of /api/embed."""
    given = sent["input"]
    texts = [given] if isinstance(given, str) else given
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequest("'input' must be a text or a list of texts for this model, not tokens.", param="input")
    body = {"input": texts}
    if dimensions := sent.get("dimensions"):
        body["dimensions"] = dimensions
    return body, ()


def options(sent: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling parameters as Ollama's `options`."""
    found: dict[str, Any] = {}
    for name, value in sent.items():
        option = _RENAMED.get(name, name)
        if option in _NUMBERS and value is not None:
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise InvalidRequest(f"'{name}' must be a number.", param=name, code="invalid_type")
            found[option] = value
    if stop := sent.get("stop"):
        stops = [stop] if isinstance(stop, str) else stop
        if not all(isinstance(text, str) for text in stops):
            raise InvalidRequest("'stop' must be a text or a list of texts.", param="stop", code="invalid_type")
        found["stop"] = stops
    return found


def _think(sent: Mapping[str, Any], strip: bool) -> tuple[Any, tuple[str, ...]]:
    """Ollama's `think`.  A model that does not think is never asked to, which it would answer with 400."""
    if (think := sent.get("think")) is not None:
        return (None, ("think",)) if strip and think else (think, ())
    effort = sent.get("reasoning_effort")
    if effort is None:
        return None, ()
    think = _EFFORTS.get(effort) if isinstance(effort, str) else None
    return (None, ("reasoning_effort",)) if think is None or (strip and think) else (think, ())


def _tools(sent: Mapping[str, Any], strip: bool) -> tuple[list[Any], tuple[str, ...]]:
    """The tools that the model may use.  Ollama lets it decide: a choice that names one leaves only that one, and is
    reported as lost because nothing forces the model to use it."""
    tools, choice = sent.get("tools"), sent.get("tool_choice")
    if not tools or choice == "none":
        return [], ()
    if strip:
        return [], ("tools",)
    if choice in (None, "auto"):
        return tools, ()
    if isinstance(choice, dict):
        wanted = _function(choice).get("name")
        tools = [tool for tool in tools if _function(tool).get("name") == wanted]
        if not tools:
            raise InvalidRequest("'tool_choice' names none of 'tools'.", param="tool_choice")
    return tools, ("tool_choice",)


def _format(sent: Mapping[str, Any]) -> Any:
    """Ollama's `format`: "json" or a JSON schema."""
    wanted, own = sent.get("response_format"), sent.get("format")
    if isinstance(wanted, dict):
        match wanted.get("type"):
            case "text":
                return None
            case "json_object":
                return "json"
            case "json_schema":
                described = wanted.get("json_schema")
                schema = described.get("schema") if isinstance(described, dict) else None
                if isinstance(schema, dict):
                    return schema
        raise InvalidRequest(
            "'response_format' must be of type 'text', 'json_object', or 'json_schema' with a 'json_schema.schema'.",
            param="response_format",
        )
    if own in (None, ""):
        return None
    if own != "json" and not isinstance(own, dict):
        raise InvalidRequest("'format' must be \"json\" or a JSON schema.", param="format")
    return own


def _message(message: Mapping[str, Any], tool_names: Mapping[str, str]) -> dict[str, Any]:
    role = message["role"]
    text, images = _content(message.get("content"))
    out: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": text}
    if images:
        out["images"] = images
    if thinking := message.get("reasoning_content") or message.get("reasoning"):
        out["thinking"] = thinking
    if calls := _calls(message):
        out["tool_calls"] = [_tool_call(call) for call in calls]
    if role == "tool":
        identity = message.get("tool_call_id")
        if name := message.get("name") or tool_names.get(str(identity)):
            out["tool_name"] = name
        if identity:
            out["tool_call_id"] = identity
    return out


def _content(content: Any) -> tuple[str, list[str]]:
    """Text and images (bare base64, as they came: never decoded and never resized)."""
    if content is None or isinstance(content, str):
        return content or "", []
    texts, images = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            source = part.get("image_url")
            url = source.get("url") if isinstance(source, dict) else source
            match = _DATA_URL.match(url) if isinstance(url, str) else None
            if match is None:
                raise InvalidRequest(
                    "Images must be sent as data URLs (data:image/…;base64,…); the gateway fetches nothing.",
                    param="messages", code="invalid_image_url",
                )  # fmt: skip
            images.append(match.string[match.end() :])
        else:
            raise InvalidRequest("A message part must be text or image_url for this model.", param="messages")
    return "\n".join(texts), images


def _tool_call(call: Any) -> dict[str, Any]:
    """OpenAI has the arguments as a JSON text, Ollama as an object."""
    name, arguments = _function(call).get("name"), _function(call).get("arguments") or {}
    if not isinstance(name, str):
        raise InvalidRequest("Each of 'tool_calls' needs a function with a name.", param="messages")
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequest("A tool call's 'arguments' must be a JSON object.", param="messages")
    out: dict[str, Any] = {"function": {"name": name, "arguments": arguments}}
    if isinstance(call.get("id"), str):
        out["id"] = call["id"]
    return out


def _tool_names(messages: list[Mapping[str, Any]]) -> dict[str, str]:
    """Which function each call of the history was to: Ollama wants its name beside the result."""
    calls = [call for message in messages for call in _calls(message)]
    return {str(call.get("id")): _function(call).get("name", "") for call in calls if isinstance(call, dict)}


def _calls(message: Mapping[str, Any]) -> list[Any]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise InvalidRequest("'tool_calls' must be a list.", param="messages")
    return calls


def _function(value: Any) -> Mapping[str, Any]:
    function = value.get("function") if isinstance(value, dict) else None
    return function if isinstance(function, dict) else {}
