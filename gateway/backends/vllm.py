"""vLLM: OpenAI's dialect, vLLM's extra parameters, and its way of telling errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gateway.backends import faults, parameters
from gateway.backends.base import UpstreamRequest
from gateway.backends.openai import OpenAI
from gateway.domain.call import Call, Endpoint
from gateway.domain.errors import Reason, UpstreamFault
from gateway.domain.snapshot import Target, Upstream

_CONTINUED: Mapping[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}


class VLLM(OpenAI):
    """The dialect of vLLM's OpenAI server (0.32)."""

    kind = "vllm"
    endpoints = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS, Endpoint.TOKENIZE})
    known = parameters.VLLM
    salts_cache = True
    takes_thoughts = True

    def prepare(self, call: Call, target: Target, upstream: Upstream) -> UpstreamRequest:
        """As OpenAI's.  Open WebUI's "Continue" ends with the assistant's own words: they are gone on with, where vLLM
        would begin another answer.  Where its connection is of the kind llama.cpp, Open WebUI asks for that itself, but
        also when the assistant has not said anything yet, which not every template stands."""
        if call.client.openwebui and call.endpoint is Endpoint.CHAT:
            body = {name: value for name, value in call.body.items() if name not in _CONTINUED}
            unfinished = _unfinished(call.body["messages"][-1])
            call = replace(call, body={**body, **_CONTINUED} if unfinished else body)
        return super().prepare(call, target, upstream)

    def path(self, call: Call, upstream: Upstream) -> str:
        """`/tokenize` lies beside `/v1`, not below it."""
        if call.endpoint is Endpoint.TOKENIZE:
            return upstream.path.removesuffix("/v1") + "/tokenize"
        return super().path(call, upstream)

    def fault(self, call: Call, target: Target, status: int, body: bytes) -> UpstreamFault:
        """A 404 for a name that the gateway chose means that the engine lost it, which is no mistake of the client; any
        other, that the engine does not serve this endpoint for its kind of model."""
        if status == 404 and b"does not exist" in body:
            return UpstreamFault(
                f"The model '{call.model}' is not loaded in its engine at the moment; it is being loaded again.",
                reason=Reason.UPSTREAM_STATUS, retryable=True, status=503, code="model_not_loaded",
                upstream_status=status, retry_after=2, should_retry=True,
            )  # fmt: skip
        if status == 404:
            message = f"The model '{call.model}' has no {call.endpoint.name.lower()}: its engine does not offer it."
            return faults.of_status(call, target, status, message, code="unsupported_endpoint")
        return super().fault(call, target, status, body)


def _unfinished(message: Mapping[str, Any]) -> bool:
    return message["role"] == "assistant" and bool(message.get("content")) and not message.get("tool_calls")
