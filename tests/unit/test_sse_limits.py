"""B-15: an event of 8 MiB passes, a longer one ends the stream, and memory stays bounded whatever comes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import repeat

import pytest

from gateway.backends.base import DecodeFault
from gateway.backends.openai import OpenAIDecoder
from gateway.domain.errors import Reason
from tests.wire import split_events

MIB = 2**20
CAP = 8 * MIB
BLOCK = 64 * 1024


def image(size: int) -> bytes:
    """An event whose payload is exactly so long."""
    frame = b'{"model":"m","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}'
    return frame % (b"i" * (size - len(frame) + 2))


def blocks(stream: bytes, size: int = BLOCK) -> Iterator[bytes]:
    return (stream[start : start + size] for start in range(0, len(stream), size))


def fed(pieces: Iterable[bytes]) -> tuple[bytes, int, DecodeFault | None]:
    """What came out, how many bytes were taken, and the fault that ended it."""
    decoder = OpenAIDecoder("m", False)
    out, taken = [], 0
    for piece in pieces:
        taken += len(piece)
        try:
            out.append(decoder.feed(piece))
        except DecodeFault as fault:
            return b"".join(out) + fault.flushed, taken, fault
    return b"".join(out), taken, None


@pytest.mark.parametrize("size", [1 * MIB, CAP - 1, CAP])
@pytest.mark.parametrize("block", [BLOCK, 2 * CAP])
def test_an_event_of_8_mib_passes_byte_for_byte(size: int, block: int) -> None:
    payload = image(size)
    assert len(payload) == size
    out, _, fault = fed(blocks(b"data: " + payload + b"\n\n", block))
    assert fault is None
    assert split_events(out) == [payload]


@pytest.mark.parametrize("stream", ["16 MiB", "no end", "no newline", "comment without end"])
def test_a_longer_event_ends_the_stream_within_bounded_memory(stream: str) -> None:
    pieces = {
        "16 MiB": blocks(b"data: " + image(2 * CAP) + b"\n\n"),
        "no end": repeat(b"data: x\n" * 8192, 16384),
        "no newline": repeat(b"x" * BLOCK, 16384),
        "comment without end": repeat(b":" + b"c" * (BLOCK - 1), 16384),
    }[stream]
    tracemalloc.start()
    try:
        out, taken, fault = fed(pieces)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert out == b""
    assert fault is not None
    assert fault.reason is Reason.UPSTREAM_PROTOCOL
    assert taken <= CAP + 2 * BLOCK
    assert peak <= 3 * CAP


@pytest.mark.parametrize(
    ("piece", "thousands"), [(b"\n", 1000), (b"\r\n", 1000), (b"\r", 1000), (b": ping\n\n", 100), (b"id: 1\n\n", 100)]
)
def test_what_says_nothing_costs_nothing(piece: bytes, thousands: int) -> None:
    """A million empty lines, or a hundred thousand comments, leave no trace in memory."""
    tracemalloc.start()
    try:
        out, _, fault = fed(repeat(piece * 1000, thousands))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (out, fault) == (b"", None)
    assert peak < MIB
