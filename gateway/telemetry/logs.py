"""Logs: one JSON object a line, or one readable line on a terminal.  Control characters are escaped in both, so that
nothing a client sends can forge a line."""

from __future__ import annotations

import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _OWN}


class JSONLines(logging.Formatter):
    """`{"time", "level", "logger", "message", …}` with the record's extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class Pretty(logging.Formatter):
    """`12:00:00 gateway.engine  message  key=value …`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the lines of a traceback if there is one."""
        colour = _COLOURS.get(record.levelname, "")
        fields = "".join(f"  {key}={value}" for key, value in _fields(record).items() if value not in (None, ""))
        name = record.name.removeprefix("gateway.")
        line = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {name:<8} {record.getMessage()}{fields}"
        line = f"{colour}{line.translate(_ESCAPES)}{colour and chr(27) + '[0m'}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure(level: str, form: str, stream: TextIO | None = None) -> None:
    """Sends the records of the `gateway` loggers to stderr.  `form`: json, pretty, or auto (pretty on a terminal)."""
    # Nobody prints these, and each is looked up for each record ("Optimization" in the manual of `logging`).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    stream = stream or sys.stderr
    pretty = form == "pretty" or (form == "auto" and stream.isatty())
    output = logging.StreamHandler(stream)
    output.setFormatter(Pretty() if pretty else JSONLines())
    root = logging.getLogger("gateway")
    root.handlers[:] = [output]
    root.setLevel(level.upper())
    root.propagate = False
