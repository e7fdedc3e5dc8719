"""Where an adapter may come from, as people write it and as programs hand it on.

    hf://ORG/REPO[@REVISION][/SUBFOLDER]            Hugging Face hub
    modelscope://ORG/REPO[@REVISION][/SUBFOLDER]    ModelScope
    https://HOST/PATH#sha256=DIGEST                 an archive behind a URL; the digest may be given beside it
    s3://BUCKET/KEY#sha256=DIGEST                   an archive in an S3 bucket

A revision is a branch, a tag or a commit; a slash in it is written %2F. Folders and archives on this machine are for
those who have them: a client uploads.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote as percent
from urllib.parse import unquote, urlsplit

from adapters.findings import quote

_MAX_TEXT = 4096  # characters

# What both hubs allow in the two parts of a repository's name, and no less strict than either.
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPO = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}", re.ASCII)
_SUBFOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}){0,7}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)


class SourceError(ValueError):
    """This is no source; the text says why and how one is written."""


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder on this machine, as peft or LLaMA-Factory left it."""

    path: Path

    def __str__(self) -> str:
        return f"folder {self.path}"


@dataclass(frozen=True, slots=True)
class ArchiveSource:
    """An archive on this machine, such as an upload."""

    path: Path

    def __str__(self) -> str:
        return "upload"


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on a hub. `revision` None: the head of its main branch."""

    hub: Literal["hf", "modelscope"]
    repo: str
    revision: str | None = None
    subfolder: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision is None else "@" + percent(self.revision, safe="")
        return f"{self.hub}://{self.repo}{revision}{f'/{self.subfolder}' if self.subfolder else ''}"


@dataclass(frozen=True, slots=True)
class UrlSource:
    """An archive behind a URL, https or s3, with the SHA-256 of its bytes."""

    url: str
    sha256: str

    def __str__(self) -> str:
        # What follows the question mark may be a signature or a token: it is for nobody to see.
        return f"{self.url.partition('?')[0]}#sha256={self.sha256}"


Source = FolderSource | ArchiveSource | HubSource | UrlSource


def parse_source(text: str, digest: str | None = None) -> HubSource | UrlSource:
    """The source that a person wrote; `digest` is the SHA-256 where it was given beside it. Raises SourceError."""
    if len(text) > _MAX_TEXT or not text.isprintable() or " " in text:
        raise SourceError("a source is one line without spaces, such as hf://org/repo or https://…#sha256=…")
    scheme, separator, rest = text.partition("://")
    if separator and scheme in ("hf", "modelscope"):
        if digest is not None:
            raise SourceError(f"{scheme}:// takes no digest: name a commit, {scheme}://org/repo@COMMIT")
        return _hub("hf" if scheme == "hf" else "modelscope", rest)
    if separator and scheme in ("https", "s3"):
        return _url(scheme, text, digest)
    if separator and scheme == "http":
        raise SourceError("http:// is not taken: anybody on the way could change what arrives; use https://")
    raise SourceError(
        f"{quote(text, 200)} is no source: write hf://org/repo[@revision], modelscope://org/repo[@revision],"
        " https://…#sha256=… or s3://bucket/key#sha256=…; a folder is packed and uploaded"
    )


def _hub(hub: Literal["hf", "modelscope"], rest: str) -> HubSource:
    path, _, fragment = rest.partition("#")
    parts = path.rstrip("/").split("/", 2)
    name, at, revision = parts[1].partition("@") if len(parts) > 1 else ("", "", "")
    repo, revision = f"{parts[0]}/{name}", unquote(revision)
    subfolder = parts[2] if len(parts) > 2 else None
    if fragment or not _REPO.fullmatch(repo) or ".." in repo:
        raise SourceError(f"{quote(f'{hub}://{rest}', 200)} names no repository: write {hub}://org/repo[@revision]")
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise SourceError(f"{quote(revision)} is no revision: write a branch, a tag or a commit")
    if subfolder is not None and (not _SUBFOLDER.fullmatch(subfolder) or ".." in subfolder):
        raise SourceError(f"{quote(subfolder)} is no folder in a repository (a slash in a revision is written %2F)")
    return HubSource(hub, repo, revision if at else None, subfolder)


def _url(scheme: str, text: str, digest: str | None) -> UrlSource:
    url, _, fragment = text.partition("#")
    shown = quote(url.partition("?")[0], 200)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise SourceError(f"{shown} is no URL") from None
    if parts.username is not None or parts.password is not None:
        raise SourceError(f"a {scheme}:// source holds no user and password: they would be recorded with the adapter")
    if not host or len(parts.path) < 2:
        raise SourceError(f"{shown} names no archive")
    if scheme == "s3" and (not _BUCKET.fullmatch(parts.netloc) or parts.query):
        raise SourceError(f"{shown} is no object in a bucket: write s3://bucket/key#sha256=…")
    return UrlSource(url, _digest(fragment, digest))


def _digest(fragment: str, beside: str | None) -> str:
    written = fragment.removeprefix("sha256=") if fragment else None
    if fragment and not fragment.startswith("sha256="):
        raise SourceError(f"#{quote(fragment)} is no digest: write #sha256=… (sha256sum ARCHIVE prints it)")
    if written is not None and beside is not None and written.lower() != beside.lower():
        raise SourceError("the digest behind # is not the one that was given beside the source")
    digest = (written or beside or "").lower().removeprefix("sha256:")
    if not _SHA256.fullmatch(digest):
        raise SourceError("the SHA-256 of the archive is needed, 64 hex digits: …#sha256=… (sha256sum ARCHIVE)")
    return digest


def as_job(source: Source) -> dict[str, object]:
    """The source as plain values, for `adapters.importing`."""
    match source:
        case FolderSource(path):
            return {"kind": "folder", "path": str(path)}
        case ArchiveSource(path):
            return {"kind": "archive", "path": str(path)}
        case HubSource(hub, repo, revision, subfolder):
            return {"kind": hub, "repo": repo, "revision": revision, "subfolder": subfolder}
        case UrlSource(url, sha256):
            return {"kind": url.partition(":")[0], "url": url, "sha256": sha256}


def from_job(values: Mapping[str, object]) -> Source:
    """The source that `as_job` wrote. Raises SourceError."""

    def text(name: str) -> str:
        value = values.get(name)
        if not isinstance(value, str):
            raise SourceError(f"the job's source has no {name}")
        return value

    match values.get("kind"):
        case "folder":
            return FolderSource(Path(text("path")))
        case "archive":
            return ArchiveSource(Path(text("path")))
        case "hf" | "modelscope" as hub:
            revision, subfolder = values.get("revision"), values.get("subfolder")
            behind = f"@{percent(str(revision), safe='')}" if revision is not None else ""
            return parse_source(f"{hub}://{text('repo')}{behind}{f'/{subfolder}' if subfolder else ''}")
        case "https" | "s3":
            return parse_source(text("url"), text("sha256"))
        case kind:
            raise SourceError(f"{quote(kind)} is no kind of source")
