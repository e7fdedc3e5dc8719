"""`gateway adapters compare`: two versions answer the same prompts."""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.cli.chat import Answer, Client
from gateway.cli.options import DEFAULT_URL, AsJson, Url
from gateway.cli.output import Failure, complain, print_json, print_table, printable, say
from gateway.cli.progress import steps

_MAX_FILE = 8 << 20  # bytes
_MAX_PROMPTS = 1000
_WIDTH = 160  # columns where there is no terminal
_DIGITS = re.compile(r"[0-9a-f]{12,64}", re.ASCII)

Messages = list[dict[str, Any]]
Pair = tuple[Answer, Answer]


def compare(
    name: Annotated[str, typer.Argument(help="The adapter.", metavar="NAME")],
    a: Annotated[str, typer.Argument(help="One version, 12 or more hex digits.", metavar="A")],
    b: Annotated[str, typer.Argument(help="The other.", metavar="B")],
    prompts: Annotated[
        Path,
        typer.Option(help="A prompt a line, or JSON lines with prompt or messages.", metavar="FILE", dir_okay=False),
    ],
    max_tokens: Annotated[int, typer.Option(help="Of each answer.", min=1, max=65536)] = 256,
    key: Annotated[
        str | None, typer.Option(envvar="GATEWAY_KEY", help="A client's key; better taken from the environment.")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Let two versions answer the same prompts, greedily and one after the other, and show the answers side by side
    with latency and token counts: exit 0, or 1 when one could not be answered."""
    versions = _version(name, a), _version(name, b)
    asked = read_prompts(prompts)
    answered: list[Pair] = []
    with Client(url, key) as client, steps() as progress:
        for number, messages in enumerate(asked):
            progress.show("Answering", number, len(asked))
            answered.append(_both(client, versions, messages, max_tokens, swap=number % 2 == 1))
        progress.show("Answering", len(asked), len(asked))
    if as_json:
        print_json(_document(name, versions, asked, answered))
    else:
        _tell(versions, asked, answered)
    failed = sum(bool(answer.error) for pair in answered for answer in pair)
    if failed:
        complain(f"{failed} of {2 * len(asked)} requests were not answered")
        raise typer.Exit(1)


def read_prompts(file: Path) -> list[Messages]:
    """The conversations of a file, in their order.  Raises Failure with the line that is wrong."""
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_FILE + 1)
        if len(data) > _MAX_FILE:
            raise Failure(f"{file} has more than {_MAX_FILE >> 20} MiB")
        lines = data.decode("utf-8-sig").split("\n")  # JSON may hold what else Python takes for the end of a line
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"{file} cannot be read: {error}") from None
    filled = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not 0 < len(filled) <= _MAX_PROMPTS:
        raise Failure(f"{file} has {len(filled)} prompts; 1 to {_MAX_PROMPTS} can be compared")
    if not filled[0][1].startswith("{"):
        return [[{"role": "user", "content": line}] for _, line in filled]
    return [_messages(line, f"{file}, line {number}") for number, line in filled]


def _messages(line: str, place: str) -> Messages:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise Failure(f"{place}: this is not JSON ({error})") from None
    if isinstance(row, dict):
        messages = row.get("messages")
        if isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages):
            return messages
        if isinstance(prompt := row.get("prompt"), str) and prompt:
            return [{"role": "user", "content": prompt}]
    raise Failure(f'{place}: write {{"prompt": "…"}} or {{"messages": [{{"role": "user", "content": "…"}}]}}')


def _version(name: str, version: str) -> str:
    """The public name of exactly this version.  Raises Failure."""
    digits = version.removeprefix(f"{name}@")
    if _DIGITS.fullmatch(digits) is None:
        raise Failure(f"{version} is no version of {name}: give 12 or more hex digits (gateway adapters show {name})")
    return f"{name}@{digits[:12]}"


def _both(client: Client, versions: tuple[str, str], messages: Messages, max_tokens: int, *, swap: bool) -> Pair:
    """What each answers.  Who is asked first changes from prompt to prompt: whatever warms up, warms up for both."""
    a, b = versions
    if swap:
        later = client.ask(b, messages, max_tokens)
        return client.ask(a, messages, max_tokens), later
    return client.ask(a, messages, max_tokens), client.ask(b, messages, max_tokens)


def _summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Medians in seconds, sums of tokens; of what was answered."""
    good = [answer for answer in answers if not answer.error]
    first = [answer.first_byte for answer in good if answer.first_byte is not None]
    return {
        "answered": len(good),
        "first_byte": statistics.median(first) if first else None,
        "total": statistics.median(answer.total for answer in good) if good else None,
        "prompt_tokens": sum(answer.prompt_tokens or 0 for answer in good),
        "completion_tokens": sum(answer.completion_tokens or 0 for answer in good),
    }


def _same(pair: Pair) -> bool:
    """Whether both were answered, alike."""
    a, b = pair
    return a.text == b.text and not a.error and not b.error


def _document(name: str, versions: tuple[str, str], asked: list[Messages], answered: list[Pair]) -> dict[str, Any]:
    a, b = versions
    return {
        "name": name,
        "versions": {"a": a, "b": b},
        "prompts": [
            {"messages": messages, "a": asdict(pair[0]), "b": asdict(pair[1]), "same": _same(pair)}
            for messages, pair in zip(asked, answered, strict=True)
        ],
        "summary": {
            "prompts": len(asked),
            "same": sum(map(_same, answered)),
            "a": _summary([pair[0] for pair in answered]),
            "b": _summary([pair[1] for pair in answered]),
        },
    }


def _tell(versions: tuple[str, str], asked: list[Messages], answered: list[Pair]) -> None:
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    for number, (messages, pair) in enumerate(zip(asked, answered, strict=True), 1):
        content = messages[-1].get("content")
        say(f"{number}/{len(asked)}  {content if isinstance(content, str) else json.dumps(content)}")
        table = Table(*versions, expand=True, header_style="bold")
        table.add_row(*(_lines(answer.error or answer.text) for answer in pair))
        table.add_section()
        table.add_row(*(_figures(answer) for answer in pair))
        console.print(table)
        say("")
    print_table(
        ("version", "answered", "first byte", "total", "tokens in", "tokens out"),
        [_totals(version, _summary([pair[side] for pair in answered])) for side, version in enumerate(versions)],
    )
    say(f"{sum(map(_same, answered))} of {len(asked)} answers are the same.")


def _totals(version: str, sums: dict[str, Any]) -> tuple[object, ...]:
    tokens = sums["prompt_tokens"], sums["completion_tokens"]
    return version, sums["answered"], _seconds(sums["first_byte"]), _seconds(sums["total"]), *tokens


def _figures(answer: Answer) -> str:
    if answer.error:
        return "no answer"
    counts = f"{answer.prompt_tokens} + {answer.completion_tokens} tokens"
    end = f", ended by {printable(answer.finish_reason)}" if answer.finish_reason not in (None, "stop") else ""
    return f"first byte {_seconds(answer.first_byte)}, total {_seconds(answer.total)}, {counts}{end}"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3f} s"


def _lines(text: str) -> Text:
    """A text that cannot write to the terminal but for its own line breaks."""
    return Text("\n".join(map(printable, text.splitlines())), overflow="fold")
