"""What commands print: tables for people, JSON for programs, complaints on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Failure(Exception):
    """A command cannot do what it was asked to; the text says why, and what to do."""


def complain(*lines: str) -> None:
    """Prints to stderr.  Control characters are taken out: names from files and servers reach the terminal."""
    for line in lines:
        sys.stderr.write(printable(line) + "\n")


def say(*lines: str) -> None:
    """Prints to stdout."""
    for line in lines:
        sys.stdout.write(printable(line) + "\n")


def print_json(value: Any) -> None:
    """Prints one JSON document."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=True) + "\n")


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table as wide as the terminal; elsewhere nothing is cut or wrapped."""
    table = Table(*headings, box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(Text(printable(str(cell)), overflow="fold") for cell in row))
    console = Console(file=sys.stdout, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = 10_000
    console.print(table)


def printable(text: str) -> str:
    """The text with its control characters written out."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
