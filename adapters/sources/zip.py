"""Reads zip archives from strangers, one member at a time.

The standard library's zipfile reads the whole list of members into memory, believes any number of them, and inflates
bzip2 and LZMA without a bound. So the end of the file is looked at before it is opened, and only what deflate packed is
unpacked; a member's bytes are counted, and compared with their checksum, by zipfile.

The format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.16
"""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader

from adapters.findings import quote
from adapters.sources.members import CHUNK, Member, refused

_END = struct.Struct("<4s4H2LH")  # of the central directory: counts are fields 3 and 4, its size is field 5
_END_SIGNATURE = b"PK\x05\x06"
_ZIP64_LOCATOR_BYTES, _ZIP64_SIGNATURE = 20, b"PK\x06\x07"
_MAX_COMMENT = (1 << 16) - 1
_MAX_DIRECTORY = 1 << 20  # bytes of the list of members

_ENCRYPTED, _PATCH, _STRONGLY_ENCRYPTED, _HIDDEN = 1 << 0, 1 << 5, 1 << 6, 1 << 13  # general purpose flags, 4.4.4
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

# What zipfile raises at files that are not what they say.
_DAMAGE = (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, struct.error, zlib.error, OSError)


def members(file: BufferedReader, size: int, most: int) -> Iterator[Member]:
    """The regular files and folders of the archive of `size` bytes. Raises RefusedError at anything else, and before
    anything is read when it has more than `most`."""
    _look_at_the_end(file, size, most)
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                _judge(entry)
                yield Member(entry.filename, entry.file_size, entry.is_dir(), _Content(archive, entry))
    except _DAMAGE as error:
        raise _damaged(error) from None


@dataclass(frozen=True, slots=True)
class _Content:
    archive: zipfile.ZipFile
    entry: zipfile.ZipInfo

    def chunks(self) -> Iterator[bytes]:
        count = 0
        try:
            with self.archive.open(self.entry) as content:
                while chunk := content.read(CHUNK):
                    count += len(chunk)
                    yield chunk
        except _DAMAGE as error:
            raise _damaged(error) from None
        if count != self.entry.file_size:
            raise refused("the archive is damaged: a member is shorter than it says")


def _look_at_the_end(file: BufferedReader, size: int, most: int) -> None:
    """Finds the record that zipfile will find, which tells how much zipfile will read."""
    length = min(size, _END.size + _MAX_COMMENT)
    file.seek(size - length)
    tail = file.read(length)
    begin = len(tail) - _END.size
    if tail[begin : begin + 4] != _END_SIGNATURE or tail[-2:] != b"\0\0":
        begin = tail.rfind(_END_SIGNATURE)
    if begin < 0 or len(tail) - begin < _END.size:
        raise refused("the archive is cut off: it does not end as a zip archive does")
    _, _, _, here, total, directory, _, _ = _END.unpack_from(tail, begin)
    locator = size - length + begin - _ZIP64_LOCATOR_BYTES
    if locator >= 0:
        file.seek(locator)
        if file.read(4) == _ZIP64_SIGNATURE:
            raise refused("the archive is a zip archive of more than 4 GiB or 65,535 members", "pack it as .tar.gz")
    if here != total or total > most:
        raise refused(f"the archive has {total} members, more than {most}")
    if directory > _MAX_DIRECTORY:
        raise refused(f"the archive has a list of members of {directory} bytes")
    file.seek(0)


def _judge(entry: zipfile.ZipInfo) -> None:
    name = quote(entry.orig_filename)
    if entry.filename != entry.orig_filename:
        raise refused(f"the member {name} has a name that ends within")
    if entry.flag_bits & (_ENCRYPTED | _STRONGLY_ENCRYPTED | _HIDDEN):
        raise refused(f"the member {name} is encrypted", "pack it without a password")
    if entry.flag_bits & _PATCH or entry.compress_type not in _METHODS:
        raise refused(f"the member {name} is packed by other means than deflate", "pack it as .tar.gz")
    kind = stat.S_IFMT(entry.external_attr >> 16)  # set by Unix programs
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise refused(f"the member {name} is {'a symbolic link' if kind == stat.S_IFLNK else 'no regular file'}")


def _damaged(error: Exception) -> Exception:
    return refused(f"the archive is damaged: {quote(str(error) or type(error).__name__, 160)}")
