"""Reads tar archives from strangers: POSIX ustar with pax and GNU's long names, one member at a time.

The standard library's tarfile (Python 3.11) is not used on them: it reads extended headers of any size into memory,
matches them with regular expressions that can take for ever, and believes negative sizes. This reader knows less, and
refuses what it does not know: links, devices, sparse files, two names or two sizes for one member.

The format: https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html#tag_20_92_13
"""

import zlib
from collections.abc import Iterator
from io import BufferedReader
from typing import Protocol

from adapters.findings import quote
from adapters.sources.members import CHUNK, Member, refused

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_MAX_EXTENSION = 64 << 10  # bytes of a pax header or a long name
_MAX_HEADERS = 256
_MAX_SIZE = 1 << 40  # of a member

_FILE, _FOLDER = (b"0", b"\0"), b"5"
_PAX, _PAX_GLOBAL, _LONG_NAME = b"x", b"g", b"L"
_OTHERS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"K": "a link",
    b"S": "a sparse file",
}


class Stream(Protocol):
    """The bytes of an archive, after decompression."""

    def read(self, size: int) -> bytes:
        """So many bytes, fewer only at the end."""

    def skip(self, size: int) -> None:
        """Passes over so many bytes, or to the end."""

    def end(self) -> None:
        """Reads what is left, where that tells whether the bytes before were right."""


class Plain:
    """An archive that is not compressed."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def skip(self, size: int) -> None:
        self._file.seek(size, 1)

    def end(self) -> None:
        pass


class Gunzipped:
    """A gzip file of one member, inflated a piece at a time, and never more than `limit` bytes of it."""

    def __init__(self, file: BufferedReader, limit: int) -> None:
        self._file = file
        self._left = limit
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)  # 16: a gzip header and trailer, checked

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (piece := self._piece(size - len(data))):
            data += piece
        return data

    def skip(self, size: int) -> None:
        while size and (piece := self._piece(min(size, CHUNK))):
            size -= len(piece)

    def end(self) -> None:
        while self._piece(CHUNK):  # the checksum comes last
            pass

    def _piece(self, size: int) -> bytes:
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._file.read(CHUNK // 8)
            if not packed:
                raise refused("the archive is cut off: its gzip stream does not end")
            try:
                piece = self._inflate.decompress(packed, size)
            except zlib.error as error:
                raise refused(f"the archive is damaged: {error}") from None
            self._left -= len(piece)
            if self._left < 0:
                raise refused("the archive inflates to far more than any adapter would")
            if piece:
                return piece
        return b""


def members(stream: Stream) -> Iterator[Member]:
    """The regular files and folders of the archive, in its order. Raises RefusedError at anything else."""
    named: str | None = None
    sized: int | None = None
    for _ in range(_MAX_HEADERS):
        block = stream.read(_BLOCK)
        if block == _ZEROS:
            if named is not None or sized is not None:
                raise refused("the archive ends after an extended header")
            stream.end()
            return
        kind, name, size = _header(block)
        if kind in (_PAX, _PAX_GLOBAL, _LONG_NAME):
            found_name, found_size = _extension(kind, _exactly(stream, size))
            if (found_name is not None and named is not None) or (found_size is not None and sized is not None):
                raise refused("the archive gives a member two names or sizes")
            named, sized = found_name or named, sized if found_size is None else found_size
            continue
        if sized is not None and size not in (0, sized):
            raise refused(f"the archive gives a member two sizes ({size} and {sized})")
        name, size = name if named is None else named, size if sized is None else sized
        named = sized = None
        if kind in _OTHERS or kind not in (*_FILE, _FOLDER):
            what = _OTHERS.get(kind, f"of the unknown kind {quote(kind.decode('latin-1'))}")
            raise refused(f"the member {quote(name)} is {what}")
        folder = kind == _FOLDER or name.endswith("/")
        if folder and size:
            raise refused(f"the folder {quote(name)} has content")
        content = _Content(stream, size)
        yield Member(name, size, folder, content)
        content.leave()
    raise refused(f"the archive has more than {_MAX_HEADERS} headers")


class _Content:
    """What follows a header, up to the next one."""

    def __init__(self, stream: Stream, size: int) -> None:
        self._stream = stream
        self._left = size
        self._padding = -size % _BLOCK

    def chunks(self) -> Iterator[bytes]:
        while self._left:
            chunk = self._stream.read(min(self._left, CHUNK))
            if not chunk:
                raise refused("the archive is cut off")
            self._left -= len(chunk)
            yield chunk

    def leave(self) -> None:
        self._stream.skip(self._left + self._padding)


def _header(block: bytes) -> tuple[bytes, str, int]:
    """Kind, name and size of a member."""
    if len(block) < _BLOCK:
        raise refused("the archive is cut off: it does not end as a tar archive does")
    if block[257:262] != b"ustar":
        raise refused("the archive is damaged, or no POSIX tar: a header is missing")
    if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise refused("the archive is damaged: a header has another checksum")
    name = block[:100].partition(b"\0")[0]
    if block[257:265] == b"ustar\x0000" and (prefix := block[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    return block[156:157], _text(name), _number(block[124:136])


def _number(field: bytes) -> int:
    """Octal digits, or for what they cannot hold a big-endian number after the byte 0x80."""
    digits = field.strip(b" \0") or b"0"
    if field[0] == 0x80:
        number = int.from_bytes(field[1:], "big")
    elif all(digit in b"01234567" for digit in digits):
        number = int(digits, 8)
    else:
        number = _MAX_SIZE + 1
    if number > _MAX_SIZE:
        raise refused(f"the archive is damaged: {quote(field.decode('latin-1'))} is no size")
    return number


def _extension(kind: bytes, data: bytes) -> tuple[str | None, int | None]:
    """The name and size that an extended header gives to the next member."""
    if kind == _LONG_NAME:
        return _text(data.removesuffix(b"\0")), None
    records = dict(_records(data))
    for key in records:
        if key.startswith("GNU.sparse"):
            raise refused("a member is a sparse file")
        if key == "linkpath" or (kind == _PAX_GLOBAL and key in ("path", "size")):
            raise refused(f"the archive has an extended header with {key}")
    size = records.get("size")
    if size is not None and not (size.isascii() and size.isdigit() and len(size) < 20 and int(size) <= _MAX_SIZE):
        raise refused(f"an extended header has the size {quote(size)}")
    return records.get("path"), None if size is None else int(size)


def _records(data: bytes) -> Iterator[tuple[str, str]]:
    """`data` is lines of "LENGTH KEY=VALUE\\n", where LENGTH counts all of the line."""
    seen: set[str] = set()
    while data:
        digits, space, _ = data[:8].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        line = data[len(digits) + 1 : length]
        key, equals, value = line[:-1].partition(b"=")
        if not (equals and len(line) == length - len(digits) - 1 and line.endswith(b"\n")) or _text(key) in seen:
            raise refused("an extended header is damaged")
        seen.add(_text(key))
        # Times, owners and attributes may be in any encoding; nobody reads them here.
        yield _text(key), _text(value) if key in (b"path", b"size") else ""
        data = data[length:]


def _exactly(stream: Stream, size: int) -> bytes:
    """The content of an extended header."""
    if size > _MAX_EXTENSION:
        raise refused(f"an extended header has {size} bytes")
    data = stream.read(size)
    stream.skip(-size % _BLOCK)
    if len(data) < size:
        raise refused("the archive is cut off")
    return data


def _text(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise refused(f"the name {quote(name.decode('latin-1'))} is not UTF-8") from None


def is_tar(head: bytes) -> bool:
    """Whether a file that begins with these 512 bytes may be a tar archive."""
    return head[257:262] == b"ustar"
