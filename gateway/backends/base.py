"""The seam between the gateway and a kind of server: pure functions over bytes, no I/O and no state between requests.

An OpenAI-compatible vendor needs no code, only an entry in the configuration.  A new dialect is one file with one
`Backend` and one line in `BACKENDS`; the conformance suite in tests/contract then runs it through every promise.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.domain.call import Call, Endpoint
from gateway.domain.errors import UpstreamFault
from gateway.domain.listing import ListedModel
from gateway.domain.snapshot import Target, Upstream
from gateway.domain.usage import Usage


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """What is sent: `path` below the upstream's origin, query included.  The transport adds host, length and the
    upstream's own headers.  `dropped` names the client's parameters that this upstream does not take."""

    path: str
    body: bytes
    method: str = "POST"
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole (non-stream) answer, ready for the client, and the usage that the upstream reported."""

    body: bytes
    usage: Usage | None


class Decoder(Protocol):
    """Turns an upstream's stream into the client's, as bytes come.  One a stream; holds no socket and no clock.

    `tokens` counts content-bearing pieces that went out: the estimate when the upstream reports no usage.
    `finished` turns true when the upstream has said that the answer is complete; the end marker and a usage chunk
    are held back until `tail`, because a request is settled before its end is shown.
    """

    usage: Usage | None
    tokens: int
    finished: bool

    def feed(self, data: bytes) -> bytes:
        """Complete events for the client (whole `data: …` lines, each followed by an empty line), or b"".

        Raises DecodeFault for an error event, an event over 8 MiB or bytes that are no stream of this dialect.
        """
        ...

    def end(self) -> None:
        """The upstream closed.  Raises DecodeFault unless the answer is complete."""
        ...

    def tail(self, usage: Usage, extras: Mapping[str, Any]) -> bytes:
        """The closing bytes: a usage chunk if the client asked for one (`extras` are keys to add to it), `[DONE]`."""
        ...


class DecodeFault(UpstreamFault):
    """A fault found in the middle of a stream.  `flushed`: complete events that came before it and still go out."""

    flushed: bytes = b""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request of the discovery: GET, or POST when it has a body."""

    path: str
    body: bytes | None = None


#: Yields requests, is sent each answer's body (None: it failed), returns what the upstream has.
Discovery = Generator[Ask, bytes | None, tuple[ListedModel, ...]]


class Backend(Protocol):
    """A stateless dialect."""

    kind: str
    endpoints: frozenset[Endpoint]

    def prepare(self, call: Call, target: Target, upstream: Upstream) -> UpstreamRequest:
        """The request to send.  Raises InvalidRequest for what this dialect cannot express at all."""
        ...

    def decoder(self, call: Call, target: Target) -> Decoder:
        """A decoder for one stream."""
        ...

    def answer(self, call: Call, target: Target, body: bytes) -> Answer:
        """A whole answer.  Raises UpstreamFault (`upstream_protocol`) for what is no answer of this dialect."""
        ...

    def fault(self, call: Call, target: Target, status: int, body: bytes) -> UpstreamFault:
        """What an answer with an error status means (`body`: at most its first 64 KiB)."""
        ...

    def discover(self, upstream: Upstream) -> Discovery:
        """How to learn which models the upstream has."""
        ...
