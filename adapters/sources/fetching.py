"""What fetching tells on the way, and how it ends badly."""

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Told how far the fetching is; as often as there is something to tell."""

    def __call__(self, done: int, total: int | None) -> None:
        """Bytes that came, and all there are, where that is known."""

    def note(self, text: str) -> None:
        """Something that people should know, such as which checkpoint is taken."""


class FetchError(Exception):
    """It could not be fetched; the text says what, from where and why, without a secret. Trying again may help."""


class AnswerError(FetchError):
    """The server answered, and not with what was asked for."""

    def __init__(self, message: str, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
