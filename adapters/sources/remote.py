"""Brings an adapter from a hub, a URL or a bucket to this machine.

What is fetched lies in a folder of its own until it is in the store or refused, so that an attempt that was cut, by the
network or by `kill -9`, is gone on with by the next one. Proxies (HTTPS_PROXY …, NO_PROXY) and certificates
(SSL_CERT_FILE, SSL_CERT_DIR) are taken from the process's environment.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from adapters.sources import hub, s3
from adapters.sources.archive import unpack
from adapters.sources.fetching import AnswerError, FetchError, Progress
from adapters.sources.parts import part
from adapters.sources.source import HubSource, UrlSource
from adapters.sources.web import Ask, Digest, Wanted, Web, web_client


@dataclass(frozen=True, slots=True)
class Fetched:
    """`source`: where from, exactly; `fill` writes the adapter's files into a folder of the same file system."""

    source: str
    fill: Callable[[Path], None]


@contextmanager
def fetched(
    source: HubSource | UrlSource, parts: Path, limit: int, environ: Mapping[str, str], progress: Progress
) -> Iterator[Fetched]:
    """The adapter of the source, at most `limit` bytes, while this lasts. Raises FetchError, RefusedError, OSError.

    What has come stays in the folder `parts` when this ends by another error than RefusedError.
    """
    with web_client() as client:
        web = Web(client)
        match source:
            case HubSource():
                found = hub.resolve(source, web, environ, limit)
                if found.checkpoint is not None:
                    progress.note(f"there is no adapter at the top: taking {found.checkpoint}")
                shown, bring = str(found.source), partial(_bring_files, found, web)
            case UrlSource():
                shown, bring = str(source), partial(_bring_archive, source, web, environ, limit)
        with part(parts, shown, lambda: progress.note("waiting for another import of the same source")) as folder:
            yield Fetched(shown, bring(folder, progress))


def _bring_files(found: hub.Resolved, web: Web, folder: Path, progress: Progress) -> Callable[[Path], None]:
    total = sum(wanted.size or 0 for wanted in found.files.values())
    _require_space(folder, total)
    done = 0
    for name, wanted in found.files.items():
        try:
            web.fetch(wanted, folder / name, partial(_tell, progress, done, total))
        except AnswerError as error:
            raise found.explain(error) from None
        done += wanted.size or 0

    def fill(target: Path) -> None:
        for name in found.files:
            (folder / name).chmod(0o444)
            (folder / name).rename(target / name)

    return fill


def _tell(progress: Progress, before: int, total: int, here: int, _: int | None) -> None:
    progress(before + here, total)


def _bring_archive(
    source: UrlSource, web: Web, environ: Mapping[str, str], limit: int, folder: Path, progress: Progress
) -> Callable[[Path], None]:
    archive = folder / "archive"
    shown = source.url.partition("?")[0]

    def wanted(region: str | None = None) -> Wanted:
        bucket = source.url.startswith("s3:")
        ask = (lambda: s3.ask(source.url, environ, datetime.now(UTC), region)) if bucket else lambda: Ask(source.url)
        return Wanted(shown, ask, Digest("sha256", source.sha256), limit)

    try:
        web.fetch(wanted(), archive, progress)
    except AnswerError as error:
        # S3 answers so, and with no address to go to, when a bucket is in another region than the request says.
        region = error.headers.get("x-amz-bucket-region")
        if not source.url.startswith("s3:") or region in (None, s3.region_of(environ)):
            raise _in_words(error, source) from None
        web.fetch(wanted(region), archive, progress)
    return lambda target: unpack(archive, target, limit, progress)


def _in_words(error: AnswerError, source: UrlSource) -> FetchError:
    if error.status in (401, 403, 404) and source.url.startswith("s3:"):
        remedy = "check bucket and key, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the gateway's environment"
        return FetchError(f"{error}: {remedy}")
    return error


def _require_space(folder: Path, size: int) -> None:
    here = sum(entry.stat().st_size for entry in os.scandir(folder))
    disk = os.statvfs(folder)
    if (free := disk.f_bavail * disk.f_frsize) < size - here:
        raise FetchError(f"{size} bytes are to be fetched, and the disk of {folder.parent} has {free} left")
