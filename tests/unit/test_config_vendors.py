"""The worked examples for third-party APIs do what they promise: nothing that a vendor refuses reaches it, whatever a
client sends, and what it takes beyond OpenAI's parameters does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.backends import BACKENDS
from gateway.controlplane.compiler import compile
from gateway.controlplane.loader import load
from gateway.controlplane.observed import Observed, UpstreamState, UpstreamStatus
from gateway.domain.call import Call, Client, Endpoint
from gateway.domain.listing import ListedModel
from gateway.domain.principal import ANONYMOUS
from tests.unit.examples import example, variables

# One setting for all models, as chat clients have it.
BODY = {
    "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    "temperature": 0.7,
    "top_p": 0.9,
    "n": 2,
    "seed": 1,
    "user": "me",
    "store": False,
    "logprobs": True,
    "top_logprobs": 2,
    "logit_bias": {"1": 1},
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "stream_options": {"include_usage": True},
    "top_k": 5,
    "thinking": {"type": "disabled"},
    "enable_thinking": False,
    "reasoning_effort": "low",
    "provider": {"sort": "price"},
    "extra_body": {"google": {}},
}


def sent(vendor: str, folder: Path, limit: str) -> dict[str, Any]:
    """What the vendor gets of that body, when the client limits the answer with this parameter."""
    text = example(vendor)
    (folder / "gateway.yaml").write_text(text + "auth: {required: false}\n")
    config = load(folder / "gateway.yaml", variables(text))
    (upstream,) = config.upstreams
    models = (ListedModel((upstream.models or ("some-model",))[0]),)
    seen = Observed({upstream.name: UpstreamStatus(UpstreamState.UP, 0.0, models=models)})
    snapshot = compile(config, seen, version=1)
    (target,) = next(iter(snapshot.routes.values())).targets
    body = {"model": "whatever", "stream": True, limit: 100, **BODY}
    call = Call("id", Endpoint.CHAT, "whatever", body, True, True, ANONYMOUS, Client())
    prepared = BACKENDS["openai"].prepare(call, target, snapshot.upstreams[upstream.name])
    parsed = orjson.loads(prepared.body)
    assert isinstance(parsed, dict)
    return parsed


REFUSED = {
    "openai": {"max_tokens", "temperature", "top_p", "logit_bias", "thinking", "top_k", "enable_thinking"},
    "azure": {"max_tokens", "thinking", "top_k"},
    "deepseek": {"max_completion_tokens", "enable_thinking", "provider", "top_k"},
    "qwen": {"max_completion_tokens", "thinking", "provider"},
    "moonshot": {"max_tokens", "temperature", "top_p", "n", "presence_penalty", "frequency_penalty"},
    "zhipu": {"max_completion_tokens", "n", "seed", "logprobs", "logit_bias"},
    "openrouter": {"thinking", "enable_thinking", "extra_body"},
    "groq": {"max_tokens", "logprobs", "top_logprobs", "logit_bias", "n", "thinking"},
    "mistral": {"max_completion_tokens", "seed", "store", "user", "stream_options", "logprobs", "thinking"},
    "gemini": {"frequency_penalty", "presence_penalty", "seed", "logit_bias", "store", "thinking"},
}
TAKEN = {
    "deepseek": {"max_tokens": 100, "thinking": {"type": "disabled"}},
    "qwen": {"max_tokens": 100, "enable_thinking": False, "top_k": 5},
    "moonshot": {"max_completion_tokens": 100, "thinking": {"type": "disabled"}},
    "zhipu": {"max_tokens": 100, "thinking": {"type": "disabled"}},
    "openrouter": {"top_k": 5, "provider": {"data_collection": "deny", "require_parameters": True}},
    "groq": {"max_completion_tokens": 100, "seed": 1},
    "mistral": {"max_tokens": 100, "random_seed": 1, "temperature": 0.7},
    "gemini": {"extra_body": {"google": {}}, "reasoning_effort": "low"},
}


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("vendor", REFUSED)
def test_nothing_that_the_vendor_refuses_reaches_it(vendor: str, limit: str, tmp_path: Path) -> None:
    body = sent(vendor, tmp_path, limit)
    assert REFUSED[vendor] & body.keys() == set()
    assert body.items() >= TAKEN.get(vendor, {}).items()


@pytest.mark.parametrize("vendor", ["deepseek", "qwen", "moonshot", "zhipu", "mistral", "gemini"])
def test_a_vendor_without_the_developer_role_gets_system(vendor: str, tmp_path: Path) -> None:
    assert sent(vendor, tmp_path, "max_tokens")["messages"][0] == {"role": "system", "content": "Be brief."}


def test_openai_gets_the_developer_role_as_it_is(tmp_path: Path) -> None:
    assert sent("openai", tmp_path, "max_tokens")["messages"][0]["role"] == "developer"


def test_the_usage_is_asked_for_wherever_that_is_not_dropped(tmp_path: Path) -> None:
    asked = {vendor: sent(vendor, tmp_path, "max_tokens").get("stream_options") for vendor in REFUSED}
    assert asked.pop("mistral") is None
    assert set(map(str, asked.values())) == {"{'include_usage': True}"}
