"""What the readers of archives hand out, and how they refuse."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from adapters.files import CONFIG, WEIGHTS
from adapters.findings import Code, Finding, RefusedError

CHUNK = 1 << 20  # bytes

_REMEDY = f"pack the adapter's files alone: tar czf adapter.tar.gz -C FOLDER {CONFIG} {WEIGHTS}"


class Content(Protocol):
    """The bytes of a member."""

    def chunks(self) -> Iterator[bytes]:
        """All of them, a piece at a time; a reader that would give more or fewer than announced refuses."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file or a folder in an archive; readers refuse all else. `name` is as it stands there, unjudged."""

    name: str
    size: int  # bytes, as announced
    folder: bool
    content: Content  # to be read before the next member is asked for, or never


def refused(message: str, remedy: str = _REMEDY) -> RefusedError:
    """For an archive whose form is wrong, as opposed to the adapter in it."""
    return RefusedError(Finding(Code.ARCHIVE, message, remedy))
