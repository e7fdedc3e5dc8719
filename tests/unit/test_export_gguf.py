"""A GGUF file is read for what it says of itself; one that is not whole is refused, wherever it ends."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.export.gguf import Gguf
from adapters.merge.errors import MergeError


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


ENTRIES = (
    entry("general.architecture", 8, text("llama")),
    entry("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b")),
    entry("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 3) + bytes(12)),
    entry("llama.block_count", 4, struct.pack("<I", 30)),
    entry("tokenizer.ggml.add_bos_token", 7, b"\1"),
)


def gguf(*entries: bytes, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, 1, len(entries)) + b"".join(entries)
    head += text("token_embd.weight") + struct.pack("<IQQIQ", 2, 4, 2, 0, 0)
    return head + bytes(-len(head) % 32) + bytes(32)


def read(folder: Path, data: bytes) -> Gguf:
    (folder / "model.gguf").write_bytes(data)
    return Gguf.read(folder / "model.gguf")


def test_what_the_file_says_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, gguf(*ENTRIES))
    assert found.metadata == {
        "general.architecture": "llama", "llama.block_count": 30, "tokenizer.ggml.add_bos_token": True,
    }  # fmt: skip
    assert found.tensors == 1
    assert found.text("general.architecture") == "llama"
    assert found.text("general.name") == ""


@pytest.mark.parametrize(
    ("entries", "adds"),
    [
        ((entry("tokenizer.ggml.add_bos_token", 7, b"\0"), entry("tokenizer.ggml.model", 8, text("llama"))), False),
        ((entry("tokenizer.ggml.model", 8, text("llama")),), True),
        ((entry("tokenizer.ggml.model", 8, text("gpt2")),), False),
    ],
)
def test_whether_llama_cpp_begins_a_text_with_a_token(tmp_path: Path, entries: tuple[bytes, ...], adds: bool) -> None:
    assert read(tmp_path, gguf(*entries)).adds_bos is adds


def test_a_file_that_was_cut_is_refused_wherever(tmp_path: Path) -> None:
    whole = gguf(*ENTRIES)
    for end in range(len(whole) - 32 + 1):
        with pytest.raises(MergeError, match="is no whole GGUF file"):
            read(tmp_path, whole[:end])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 240), st.binary(min_size=1, max_size=9))
def test_a_file_that_lies_is_read_or_refused_in_words(tmp_path: Path, at: int, other: bytes) -> None:
    whole = gguf(*ENTRIES)
    with suppress(MergeError):
        read(tmp_path, whole[:at] + other + whole[at + len(other) :])


def test_another_version_or_format_is_refused(tmp_path: Path) -> None:
    for data, reason in ((gguf(version=9), "version is 9"), (b"PK\3\4" + bytes(40), "does not begin with GGUF")):
        with pytest.raises(MergeError, match=reason):
            read(tmp_path, data)
