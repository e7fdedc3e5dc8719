"""Token counts of one answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MAX_TOKENS = 10**9  # a count beyond this is a lie or a fault, and must not reach a counter


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens in and out.  `estimated`: counted by the gateway because the upstream gave no count."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0
    estimated: bool = False

    def as_openai(self) -> dict[str, Any]:
        """OpenAI's `usage` object."""
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }
        if self.estimated:
            usage["estimated"] = True
        return usage


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_TOKENS:
        return None
    return value


def from_openai(usage: object) -> Usage | None:
    """Reads an OpenAI `usage` object; None where it has no believable counts (negative, not an integer, absurd)."""
    if not isinstance(usage, Mapping):
        return None
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens", 0))
    if prompt is None or completion is None:
        return None
    cached = reasoning = 0
    if isinstance(details := usage.get("prompt_tokens_details"), Mapping):
        cached = _count(details.get("cached_tokens")) or 0
    if isinstance(details := usage.get("completion_tokens_details"), Mapping):
        reasoning = _count(details.get("reasoning_tokens")) or 0
    return Usage(prompt, completion, cached, reasoning)
