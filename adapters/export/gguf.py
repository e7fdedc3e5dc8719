"""Reads what a GGUF file says of itself, and whether all of it is there.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little-endian): magic, version, counts
of tensors and of metadata; the metadata; of each tensor its name, shape, type and offset; then, aligned, the tensors.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adapters.merge.errors import MergeError

_MAGIC = b"GGUF"
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32
_MAX_COUNT, _MAX_TEXT, _MAX_DEPTH = 1 << 24, 1 << 26, 4


@dataclass(frozen=True, slots=True)
class Gguf:
    """Metadata by key; lists are left out (a vocabulary has a hundred thousand entries)."""

    metadata: Mapping[str, object]
    tensors: int

    @classmethod
    def read(cls, file: Path) -> "Gguf":
        """Raises MergeError for a file that is not one, or ends before its last tensor begins."""
        try:
            with file.open("rb") as stream:
                return cls(*_read(stream))
        except (OSError, struct.error, EOFError, UnicodeDecodeError, ValueError) as error:
            raise MergeError(f"{file} is no whole GGUF file ({error})") from error

    def text(self, key: str) -> str:
        """A text of the metadata; empty where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    @property
    def adds_bos(self) -> bool:
        """Whether llama.cpp puts the token that begins a text before every prompt.

        Where the file does not say, it does so for the vocabularies of SentencePiece.
        """
        told = self.metadata.get("tokenizer.ggml.add_bos_token")
        return told if isinstance(told, bool) else self.text("tokenizer.ggml.model") == "llama"


def _read(stream: BinaryIO) -> tuple[dict[str, object], int]:
    if stream.read(4) != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, tensors, entries = _scalar(stream, "<I"), _count(stream), _count(stream)
    if version not in (2, 3):
        raise ValueError(f"its version is {version}")
    metadata: dict[str, object] = {}
    for _ in range(entries):
        key, kind = _text(stream), _scalar(stream, "<I")
        value = _value(stream, int(kind), _MAX_DEPTH)
        if kind != _ARRAY:
            metadata[key] = value
    last = 0
    for _ in range(tensors):
        _text(stream)
        stream.seek(8 * int(_scalar(stream, "<I")) + 4, os.SEEK_CUR)
        last = max(last, int(_scalar(stream, "<Q")))
    begin = -(-stream.tell() // _ALIGNMENT) * _ALIGNMENT
    if begin + last >= os.fstat(stream.fileno()).st_size:
        raise EOFError("it ends before its last tensor")
    return metadata, tensors


def _scalar(stream: BinaryIO, form: str) -> int | float | bool:
    (value,) = struct.unpack(form, stream.read(struct.calcsize(form)))
    return value  # type: ignore[no-any-return]


def _count(stream: BinaryIO) -> int:
    count = int(_scalar(stream, "<Q"))
    if count > _MAX_COUNT:
        raise ValueError(f"it counts to {count}")
    return count


def _text(stream: BinaryIO) -> str:
    length = int(_scalar(stream, "<Q"))
    if length > _MAX_TEXT:
        raise ValueError(f"it has a text of {length} bytes")
    data = stream.read(length)
    if len(data) < length:
        raise EOFError("it ends within a text")
    return data.decode("utf-8", errors="replace")


def _value(stream: BinaryIO, kind: int, depth: int) -> object:
    if kind == _STRING:
        return _text(stream)
    if kind in _SCALARS:
        return _scalar(stream, _SCALARS[kind])
    if kind != _ARRAY or not depth:
        raise ValueError(f"it has a value of kind {kind}")
    inner, length = int(_scalar(stream, "<I")), _count(stream)
    if inner in _SCALARS:
        stream.seek(struct.calcsize(_SCALARS[inner]) * length, os.SEEK_CUR)
    else:
        for _ in range(length):
            _value(stream, inner, depth - 1)
    return None
