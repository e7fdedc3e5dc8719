"""Streams to take apart: recorded from real servers (tests/samples/streams), and the same dressed differently.

`reference` reads an event stream the slow way, straight from the HTML standard (9.2.6), line by line and whole: what
an incremental decoder must agree with, wherever the bytes were cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from gateway.backends.openai import OpenAIDecoder

RECORDED = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parents[1] / "samples/streams").iterdir())}
NEWLINES = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}


def reference(stream: bytes) -> list[bytes]:
    """The data of each complete event."""
    lines = re.split(b"\r\n|\r|\n", stream.removeprefix(b"\xef\xbb\xbf"))[:-1]
    events: list[bytes] = []
    data: list[bytes] = []
    for line in lines:
        if not line:
            if data:
                events.append(b"\n".join(data))
            data = []
        elif line.partition(b":")[0] == b"data":
            value = line.partition(b":")[2]
            data.append(value.removeprefix(b" "))
    return events


def dressed() -> Iterator[tuple[str, bytes]]:
    """Each recorded stream with each line ending, and with what else an event stream may hold."""
    for name, stream in RECORDED.items():
        for ending, newline in NEWLINES.items() if name.startswith("vllm") else [("lf", b"\n")]:
            yield f"{name}-{ending}", stream.replace(b"\n", newline)
    chat = RECORDED["vllm_chat_stream"]
    events = chat.split(b"\n\n")
    endings = [b"\n\r\n", b"\r\r", b"\r\n\n", b"\n\r", b"\r\r\n", b"\r\n\r"]
    yield "mixed-endings", b"".join(event + endings[i % 6] for i, event in enumerate(events) if event)
    yield "comments", b"".join(b": ping\n" + event + b"\n: pong\n\n:\n\n" for event in events if event)
    yield "other-fields", b"".join(b"event: chunk\nid: 7\nretry: 0\n" + event + b"\n\n" for event in events if event)
    yield "no-space", chat.replace(b"data: ", b"data:")
    yield "blank-lines", chat.replace(b"\n\n", b"\n\n\n\n\n")
    yield "byte-order-mark", b"\xef\xbb\xbf" + chat
    yield "two-lines-an-event", chat.replace(b',"choices"', b'\ndata: ,"choices"')
    for word in ("北京是中国的首都。", "👩‍👩‍👧‍👦🏳️‍🌈", "e\u0301\u202e\u2028\u0085", "\\u0000\\n\\r\\n\\n"):
        yield f"text-{word[:4]!r}", chat.replace(b" capital", word.encode())


def decode(stream: list[bytes], model: str = "public", wants_usage: bool = True) -> tuple[bytes, OpenAIDecoder]:
    """What the decoder makes of a stream that comes in these pieces."""
    decoder = OpenAIDecoder(model, wants_usage)
    out = b"".join(decoder.feed(piece) for piece in stream)
    decoder.end()
    return out, decoder
