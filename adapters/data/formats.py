"""Reads training data in the two formats that most of it is in, alpaca and sharegpt, as JSON or JSON lines.

    load(path) -> tuple[Row, ...]

Both become the same thing, a conversation that begins with a user (after an optional system message), alternates, and
ends with the assistant. A row that can't be read is never left out in silence: `load` reads the whole file and then
raises one DataError with every bad row, its place, and what to do. The formats are LLaMA-Factory's
(https://llamafactory.readthedocs.io/en/latest/getting_started/data_preparation.html), with its defaults. Standard
library only.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

MAX_BYTES = 256 << 20
"""A larger file is refused: it is read into memory whole."""

MAX_SHOWN = 20
"""How many bad rows an error spells out; the rest are counted."""

ROLES: Mapping[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
UNSUPPORTED = ("images", "videos", "audios", "tools", "chosen", "rejected", "kto_tag")
"""Fields that change what a row means and that nothing here can train on; ignoring one would be dropping it."""


class Message(TypedDict):
    """What a chat template takes."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation to learn from. Every assistant message in it is learned."""

    messages: tuple[Message, ...]
    place: str
    """`pirate.json, row 3`, for errors that only show when the row is used."""


class DataError(ValueError):
    """The file, or some of its rows, can't be used. Says where, what is wrong, and what to do."""


class _BadRow(Exception):
    """What is wrong with one row and how to mend it, without its place."""


def load(path: Path) -> tuple[Row, ...]:
    """All rows of the file, in order. Raises DataError for a bad file or for any bad row."""
    rows: list[Row] = []
    bad: list[str] = []
    for place, record in _records(path):
        try:
            rows.append(Row(_conversation(record), place))
        except _BadRow as error:
            bad.append(f"{place}: {error}")
    if bad:
        more = f"\n… and {len(bad) - MAX_SHOWN} more" if len(bad) > MAX_SHOWN else ""
        total = len(rows) + len(bad)
        raise DataError(f"{len(bad)} of {total} rows can't be used:\n" + "\n".join(bad[:MAX_SHOWN]) + more)
    if not rows:
        raise DataError(f"{path.name} has no rows")
    return tuple(rows)


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Each record with its place: of a JSON list by its number, of JSON lines by its line."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{path.name} has {size >> 20} MiB, more than {MAX_BYTES >> 20}: split it")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} isn't UTF-8 (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None
    if text.lstrip().startswith("["):
        yield from ((f"{path.name}, row {number}", record) for number, record in enumerate(_parsed(path, text), 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path.name}, line {number}", _parsed(path, line, number)


def _parsed(path: Path, text: str, line: int = 0) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        at = line or getattr(error, "lineno", 1)
        raise DataError(
            f"{path.name}, line {at}: not JSON ({error}). The file must be a JSON list of rows, or one row a line."
        ) from None


def _conversation(record: Any) -> tuple[Message, ...]:
    if not isinstance(record, dict):
        raise _BadRow(f"a row must be an object, this is {_named(record)}")
    for field in UNSUPPORTED:
        if record.get(field) not in (None, "", []):
            raise _BadRow(f"`{field}` isn't supported: remove it, or take the row out")
    for key, read in SHAPES.items():
        if key in record:
            return _checked(read(record))
    raise _BadRow(
        "neither `conversations` (sharegpt) nor `instruction` (alpaca) is there, only "
        + (", ".join(f"`{key}`" for key in sorted(record)) or "nothing")
    )


def _alpaca(record: Mapping[str, Any]) -> list[Message]:
    """{instruction, input?, output, system?, history?: [[question, answer], …]}"""
    question = _text(record, "instruction")
    if extra := _text(record, "input", required=False):
        question = f"{question}\n{extra}"
    messages = _system(record)
    history = record.get("history") or []
    if not isinstance(history, list):
        raise _BadRow(f"`history` must be a list of [question, answer] pairs, this is {_named(history)}")
    for number, pair in enumerate(history, 1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise _BadRow(f"`history` {number} must be a [question, answer] pair of strings")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": _text(record, "output")}]


def _sharegpt(record: Mapping[str, Any]) -> list[Message]:
    """{conversations: [{from, value}, …], system?}; a system message among the turns goes before the field."""
    turns = record["conversations"]
    if not isinstance(turns, list):
        raise _BadRow(f"`conversations` must be a list, this is {_named(turns)}")
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise _BadRow(f"turn {number} must be an object with `from` and `value`, this is {_named(turn)}")
        given = turn.get("from")
        role = ROLES.get(given) if isinstance(given, str) else None
        if role is None:
            raise _BadRow(f"turn {number}: `from` is {given!r}; known are {', '.join(ROLES)}")
        try:
            messages.append({"role": role, "content": _text(turn, "value")})
        except _BadRow as error:
            raise _BadRow(f"turn {number}: {error}") from None
    return messages if messages and messages[0]["role"] == "system" else [*_system(record), *messages]


SHAPES: Mapping[str, Callable[[Mapping[str, Any]], list[Message]]] = {
    "conversations": _sharegpt,
    "instruction": _alpaca,
}
"""The field that tells a format, and how to read a record of it."""


def _checked(messages: list[Message]) -> tuple[Message, ...]:
    """The messages, if they take turns as a chat does: [system], then user and assistant, assistant last."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    for position, message in enumerate(turns):
        expected = "assistant" if position % 2 else "user"
        if message["role"] != expected:
            number = position + 1 + len(messages) - len(turns)
            raise _BadRow(f"message {number} is of the {message['role']}, where the {expected} must speak")
    if not turns or len(turns) % 2:
        raise _BadRow("the last message must be of the assistant: there is no answer to learn")
    return tuple(messages)


def _system(record: Mapping[str, Any]) -> list[Message]:
    text = _text(record, "system", required=False)
    return [{"role": "system", "content": text}] if text else []


def _text(record: Mapping[str, Any], field: str, *, required: bool = True) -> str:
    value = record.get(field)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise _BadRow(f"`{field}` must be a string, this is {_named(value)}")
    if required and not value.strip():
        raise _BadRow(f"`{field}` is empty")
    return value


def _named(value: Any) -> str:
    """What JSON calls the value's type."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null or missing"}
    return names.get(type(value), "a number")
