"""The reader of the configuration file: what a scalar becomes, how the environment gets in, and what a hostile or
broken file costs."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gateway.controlplane.document import MAX_BYTES, UnreadableError, read
from tests.patience import LATE


def value_of(text: str, environ: dict[str, str] | None = None) -> Any:
    document = read(f"key: {text}\n".encode(), environ or {})
    assert document.mistakes == ()
    return document.tree["key"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8000", 8000),
        ("-1", -1),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("true", True),
        ("null", None),
        ("", None),
        ("'8000'", "8000"),
        # What YAML 1.1 makes of these is no use to anyone here.
        ("2024-10-21", "2024-10-21"),
        ("no", "no"),
        ("12:30", "12:30"),
        ("0123", 123),
        ("1_000", "1_000"),
    ],
)
def test_a_scalar_is_what_it_looks_like(text: str, value: object) -> None:
    got = value_of(text)
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${A}", "x"),
        ("${A}/${A}", "x/x"),
        ("${MISSING:-default}", "default"),
        ("${EMPTY:-default}", "default"),
        ("${EMPTY}", ""),
        ("${MISSING:-}", ""),
        ("$${A}", "${A}"),
        ("'${A}'", "x"),
        ("$A ${A}", "$A x"),
        ("${YAML}", "{a: [1, 2]}\nadmin: true"),
        ("${NESTED}", "${A}"),
    ],
)
def test_the_environment_is_put_in_as_text_and_once(text: str, value: str) -> None:
    environ = {"A": "x", "EMPTY": "", "YAML": "{a: [1, 2]}\nadmin: true", "NESTED": "${A}"}
    assert value_of(text, environ) == value


def test_a_reference_in_a_comment_needs_no_value() -> None:
    assert read(b"a: 1  # ${NOT_SET}\n# ${NOT_SET}\n", {}).mistakes == ()


def test_a_variable_without_a_value_is_a_mistake_at_its_place() -> None:
    document = read(b"a:\n  - b: ${NOT_SET}\n", {})
    assert [mistake.loc for mistake in document.mistakes] == [("a", 0, "b")]
    assert document.holes == {("a", 0, "b")}
    assert "NOT_SET" in document.mistakes[0].message


def test_a_key_written_twice_names_both_lines() -> None:
    (mistake,) = read(b"a: 1\nb: 2\na: 3\n", {}).mistakes
    assert mistake.loc == ("a",)
    assert "lines 1 and 3" in mistake.message


def test_every_place_knows_its_line() -> None:
    document = read(b"a:\n  b: 1\n  c:\n    - x\n    - {y: 2}\n", {})
    assert document.lines[("a",)] == 1
    assert document.lines[("a", "b")] == 2
    assert document.lines[("a", "c", 0)] == 4
    assert document.lines[("a", "c", 1, "y")] == 5


def test_an_anchor_may_be_used_again() -> None:
    document = read(b"a: &x {k: [1]}\nb: *x\n", {})
    assert document.tree == {"a": {"k": [1]}, "b": {"k": [1]}}


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("data", "words", "line"),
    [
        (b"a: [1\nb: 2\n", "not valid YAML", 2),
        (b"a: 1\n\tb: 2\n", "not valid YAML", 2),
        (b"a: 1\n--- \nb: 2\n", "single document", 2),
        (b"a: *nope\n", "undefined alias", 1),
        (b"a: \x07\n", "control character", 1),
        (b"a: 1\nb: \xff\xfe\n", "not UTF-8", 2),
        (b"a: &a [*a]\n", "contains itself", 1),
        (b"a: " + b"[" * 40 + b"]" * 40, "nested deeper", 1),
        (b"a: " + b"{b: " * 5000, "nested deeper", 1),
        (LAUGHS.encode(), "more than 50,000 values", None),
        (b"#" * (MAX_BYTES + 1), "larger than 1 MiB", None),
    ],
    ids=["flow", "tab", "documents", "alias", "bell", "latin", "loop", "deep", "deeper", "laughs", "large"],
)
def test_what_cannot_be_read_is_refused_quickly_with_its_line(data: bytes, words: str, line: int | None) -> None:
    started = time.process_time()
    with pytest.raises(UnreadableError) as caught:
        read(data, {})
    assert time.process_time() - started < LATE
    assert words in caught.value.message
    assert line is None or caught.value.line == line


def test_nothing_but_plain_values_is_ever_built() -> None:
    document = read(b"a: !!python/object/apply:os.system [exit 7]\nb: !!binary aGk=\nc: !!timestamp 2024-10-21\n", {})
    assert {mistake.loc for mistake in document.mistakes} >= {("b",), ("c",)}
    assert document.tree["b"] is None


def test_an_error_of_syntax_does_not_show_the_line_that_holds_it() -> None:
    with pytest.raises(UnreadableError) as caught:
        read(b'admin_key: "9f4c1d7e2b8a6053\nport: [', {})
    assert "9f4c1d7e" not in f"{caught.value.message} {caught.value.hint}"
