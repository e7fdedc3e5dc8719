"""Reading an engine's output: bytes to bounded, printable lines without secrets, and what those lines tell.

Pure; `engines` does the reading and the logging.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LINE_LIMIT = 4096  # characters of a line that are kept
_BUFFER_LIMIT = 8 * LINE_LIMIT  # bytes of an unfinished line: a secret that is cut here lies beyond what is kept
_SHORTEST_SECRET = 8  # shorter values are settings, and would blot out half the log

_LINE_END = re.compile(rb"\r\n|\n|\r(?=.)", re.DOTALL)  # a last \r may be half of \r\n
_ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_LEVEL = re.compile(r"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d ")
_ERROR = re.compile(r"\b(?:\w+\.)*\w*(?:Error|Exception): .+|\berror: .+|\bcannot run .+")
_SYMPTOM = re.compile(r"EngineDeadError|root cause|EngineCore failed|died unexpectedly")

# What vLLM 0.32 prints while it boots, in the order in which it does, and what that means.
_PROGRESS = (
    (re.compile(r"^(\S+): +(\d+)%\|"), "downloading {} {} %"),
    (re.compile(r"non-default args: "), "reading the model's configuration"),
    (re.compile(r"Resolved architecture: "), "starting the engine's processes"),
    (re.compile(r"Initializing a V1 LLM engine"), "starting the worker"),
    (re.compile(r"Starting to load model"), "loading weights"),
    (re.compile(r"Loading \S+ checkpoint shards: +(\d+)%"), "loading weights {} %"),
    (re.compile(r"Loading weights took"), "weights loaded"),
    (re.compile(r"Dynamo bytecode transform|Warming up model"), "compiling"),
    (re.compile(r"Capturing CUDA graphs.*?: +(\d+)%"), "capturing CUDA graphs {} %"),
    (re.compile(r"KV cache size: "), "preparing the key-value cache"),
    (re.compile(r"Starting vLLM (?:API )?server"), "opening the API"),
)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of output.  `passing`: a progress bar drew it, to be drawn over by the next one."""

    text: str
    passing: bool = False


class LineReader:
    """Cuts output into lines, whatever the boundaries of the pieces that it comes in.  Memory is bounded."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # The longest first: one secret may be the beginning of another.
        self._secrets = sorted((s for s in set(secrets) if len(s) >= _SHORTEST_SECRET), key=len, reverse=True)
        self._pending = b""
        self._skipping = False  # the rest of a line whose beginning was long enough to be given out

    def feed(self, data: bytes) -> list[Line]:
        """The lines that this piece completes."""
        lines = []
        self._pending += data
        start = 0
        for end in _LINE_END.finditer(self._pending):
            lines += self._line(self._pending[start : end.start()], passing=end.group() == b"\r")
            start = end.end()
        self._pending = self._pending[start:]
        if len(self._pending) > _BUFFER_LIMIT:
            lines += self._line(self._pending, passing=False)
            self._pending, self._skipping = b"", True
        return lines

    def end(self) -> list[Line]:
        """The last line, if the output did not end with a line's end."""
        lines = self._line(self._pending.rstrip(b"\r"), passing=False)
        self._pending = b""
        return lines

    def _line(self, raw: bytes, *, passing: bool) -> list[Line]:
        if self._skipping:
            self._skipping = False
            return []
        text = printable(raw.decode("utf-8", "backslashreplace"))
        for secret in self._secrets:
            text = text.replace(secret, "***")
        if len(text) > LINE_LIMIT:
            text = text[: LINE_LIMIT - 1] + "…"
        return [Line(text, passing)] if text.strip() else []


def printable(text: str) -> str:
    """The text without colours, and with every other control character written out."""
    text = _ESCAPE_SEQUENCE.sub("", text).expandtabs(4)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def level(line: str) -> int:
    """The logging level that vLLM gave this line; INFO for what other code prints."""
    found = _LEVEL.search(line)
    return logging.getLevelNamesMapping()[found[1]] if found else logging.INFO


def alarming(line: str) -> bool:
    """Whether vLLM says that its core is dead.  Its API server ends seconds later."""
    return "EngineDeadError" in line


def progress(line: str) -> str | None:
    """What an engine that boots is doing, if the line tells."""
    for pattern, words in _PROGRESS:
        if found := pattern.search(line):
            return words.format(*found.groups())
    return None


def cause(lines: Sequence[str]) -> str:
    """What an engine most likely died of, by the end of its log; "" when there is none.

    The last error is taken, but for those in which one process of vLLM only says that another one failed.  What vLLM
    marks as less than an error is none, whatever its words.
    """
    severe = [line for line in lines if not (mark := _LEVEL.search(line)) or mark[1] in ("ERROR", "CRITICAL")]
    errors = [found[0] for line in severe if (found := _ERROR.search(line))]
    causes = [error for error in errors if not _SYMPTOM.search(error)]
    if causes or errors:
        return (causes or errors)[-1]
    return f'its log names no error and ends with "{lines[-1]}"' if lines else ""
