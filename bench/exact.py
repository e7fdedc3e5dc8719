"""Are the bytes the upstream's? One request at a time, payload beside payload."""

from __future__ import annotations

import http.client
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass

from measure import chat

TIMEOUT_S = 30


class Unanswered(Exception):
    """No answer, or one that is an error."""


@dataclass(frozen=True)
class Alterations:
    """What a target changed in the answers to all CASES; a whole JSON answer counts as one line."""

    lines: int
    altered: int
    bytes: int  # that differ, line by line: length and position
    example: tuple[str, str] | None  # the upstream's first altered line, and what became of it


CASES = (
    chat("steady", 32, stream=False),
    chat("steady", 32, stream=True),
    chat("paced-500", 32, stream=True),
    chat("paced-500", 32, stream=True) | {"stream_options": {"include_usage": True}},
)


def ask(port: int, headers: Mapping[str, str], request: object) -> bytes:
    """The payload of an answer: of JSON the body, of a stream its `data:` lines. Raises Unanswered."""
    body, kind = post(port, "/v1/chat/completions", headers, request)
    if not kind.startswith("text/event-stream"):
        return body
    return b"".join(line for line in body.splitlines(keepends=True) if line.startswith(b"data:"))


def post(port: int, path: str, headers: Mapping[str, str], request: object) -> tuple[bytes, str]:
    """An answer's body and its content type. Raises Unanswered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", path, json.dumps(request), {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unanswered(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        raise Unanswered(f"status {answer.status}: {body[:300].decode(errors='replace')}")
    return body, answer.getheader("content-type") or ""


def compare(upstream: bytes, relayed: bytes) -> Alterations:
    """Line by line in order: a line that is missing or was added is altered as well."""
    pairs = list(itertools.zip_longest(upstream.splitlines(), relayed.splitlines(), fillvalue=b""))
    altered = [(ours, theirs) for ours, theirs in pairs if ours != theirs]
    example = (altered[0][0].decode(errors="replace"), altered[0][1].decode(errors="replace")) if altered else None
    return Alterations(len(pairs), len(altered), sum(_distance(*pair) for pair in altered), example)


def _distance(one: bytes, other: bytes) -> int:
    return sum(a != b for a, b in zip(one, other, strict=False)) + abs(len(one) - len(other))


def alterations(bare_port: int, port: int, headers: Mapping[str, str]) -> Alterations:
    """Sends every case to the upstream itself and through a target. Raises Unanswered."""
    found = [compare(ask(bare_port, headers, case), ask(port, headers, case)) for case in CASES]
    examples = [one.example for one in found if one.example]
    return Alterations(
        sum(one.lines for one in found),
        sum(one.altered for one in found),
        sum(one.bytes for one in found),
        examples[0] if examples else None,
    )
