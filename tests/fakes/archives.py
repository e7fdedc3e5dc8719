"""Archives as honest programs write them, and as nobody honest does, byte by byte."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping

BLOCK = 512
END = bytes(2 * BLOCK)


def header(
    name: bytes,
    size: int = 0,
    kind: bytes = b"0",
    *,
    link: bytes = b"",
    prefix: bytes = b"",
    magic: bytes = b"ustar\x0000",
    size_field: bytes | None = None,
    checksum: int | None = None,
) -> bytes:
    """One block, with a right checksum unless another is given."""
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136] = size_field or b"%011o\0" % size
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[157 : 157 + len(link)] = link
    block[257 : 257 + len(magic)] = magic
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % (sum(block) if checksum is None else checksum)
    return bytes(block)


def entry(name: str, data: bytes = b"", kind: bytes = b"0", **fields: object) -> bytes:
    """A member: its header, its bytes, and zeros up to the next block."""
    return header(name.encode(), len(data), kind, **fields) + data + bytes(-len(data) % BLOCK)  # type: ignore[arg-type]


def pax(kind: bytes = b"x", **records: str) -> bytes:
    """An extended header; underscores in names stand for dots."""
    return entry("PaxHeaders/x", b"".join(record(k.replace("_", "."), v) for k, v in records.items()), kind)


def record(key: str, value: str | bytes) -> bytes:
    """One line of an extended header, which says its own length."""
    rest = b" " + key.encode() + b"=" + (value.encode() if isinstance(value, str) else value) + b"\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest


def long_name(name: str) -> bytes:
    """GNU's way to a long name of the next member."""
    return entry("././@LongLink", name.encode() + b"\0", b"L", magic=b"ustar  \0")


def tar(files: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """As tarfile writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def zipped(
    files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED, comment: bytes = b"", attributes: int = 0
) -> bytes:
    """As zipfile writes it; `attributes` are those of a Unix file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            info.external_attr = attributes << 16
            archive.writestr(info, data)
        archive.comment = comment
    return out.getvalue()


def patched(archive: bytes, field: str, value: int, *, local: bool = False) -> bytes:
    """The zip archive with a field of its first member changed, in the list of members or before its bytes.

    APPNOTE.TXT 4.3.7 and 4.3.12.
    """
    signature = b"PK\x03\x04" if local else b"PK\x01\x02"
    offset, form = {
        "flags": (6 if local else 8, "<H"),
        "method": (8 if local else 10, "<H"),
        "crc": (14 if local else 16, "<L"),
        "packed": (18 if local else 20, "<L"),
        "size": (22 if local else 24, "<L"),
        "offset": (42, "<L"),
    }[field]
    data = bytearray(archive)
    struct.pack_into(form, data, data.index(signature) + offset, value)
    return bytes(data)


def end_of(archive: bytes, **fields: int) -> bytes:
    """The zip archive with fields of its last record changed."""
    offsets = {"here": (8, "<H"), "total": (10, "<H"), "directory": (12, "<L"), "begin": (16, "<L")}
    data = bytearray(archive)
    at = data.rindex(b"PK\x05\x06")
    for name, value in fields.items():
        offset, form = offsets[name]
        struct.pack_into(form, data, at + offset, value)
    return bytes(data)
