"""Adapters in repositories of the Hugging Face hub and of ModelScope.

A revision is resolved to its commit first, and everything is fetched of that commit, each file against the digest that
the hub lists for it. Only the adapter's own files are asked for.

    HF_TOKEN, HF_ENDPOINT             https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
    MODELSCOPE_API_TOKEN, MODELSCOPE_ENDPOINT (or MODELSCOPE_DOMAIN)    as in the package modelscope_hub 0.5
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol
from urllib.parse import quote as percent
from urllib.parse import urlencode

from adapters.files import ADAPTER_FILES, BESIDE, CONFIG, MAX_BYTES, missing, too_large
from adapters.findings import RefusedError, quote
from adapters.sources.checkpoints import newest_checkpoint
from adapters.sources.fetching import AnswerError, FetchError
from adapters.sources.source import HubSource
from adapters.sources.web import Ask, Digest, Wanted, Web

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?", re.ASCII)
_HEX: Mapping[str, re.Pattern[str]] = {
    "sha256": re.compile(r"[0-9a-f]{64}", re.ASCII),
    "blob": re.compile(r"[0-9a-f]{40}", re.ASCII),
}


@dataclass(frozen=True, slots=True)
class Resolved:
    """An adapter in a repository. `source` names the commit; `checkpoint`: taken, as there is none at the top;
    `explain` says in words what the hub's answer to a request for a file means."""

    source: HubSource
    files: Mapping[str, Wanted]
    checkpoint: str | None
    explain: Callable[[AnswerError], FetchError]


@dataclass(frozen=True, slots=True)
class _File:
    size: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class _Folder:
    files: Mapping[str, _File]  # by name
    folders: tuple[str, ...]


class _Repository(Protocol):
    """How one hub is asked. Raises FetchError."""

    def commit(self, revision: str | None) -> str: ...

    def folder(self, commit: str, path: str | None) -> _Folder: ...

    def file(self, commit: str, path: str) -> Ask: ...

    def explain(self, error: AnswerError) -> FetchError: ...


def resolve(source: HubSource, web: Web, environ: Mapping[str, str], limit: int) -> Resolved:
    """What there is to fetch for the source; at most `limit` bytes. Raises FetchError, RefusedError."""
    hub: _Repository = (_HuggingFace if source.hub == "hf" else _ModelScope)(source, web, environ)
    commit = hub.commit(source.revision)
    place = source.subfolder
    folder = hub.folder(commit, place)
    checkpoint = None
    if CONFIG not in folder.files:
        checkpoint = newest_checkpoint(
            folder.folders, lambda name: CONFIG in hub.folder(commit, _below(place, name)).files
        )
        if checkpoint is not None:
            place = _below(place, checkpoint)
            folder = hub.folder(commit, place)
    for name in ADAPTER_FILES:
        if name not in folder.files:
            raise RefusedError(missing(name, folder.files))
    resolved = replace(source, revision=commit, subfolder=place)
    files = {}
    for name in (*ADAPTER_FILES, *BESIDE):
        if found := folder.files.get(name):
            if found.size > MAX_BYTES[name]:
                raise too_large(f"{resolved}/{name}", MAX_BYTES[name])
            ask = partial(hub.file, commit, _below(place, name))
            files[name] = Wanted(f"{resolved}/{name}", ask, found.digest, MAX_BYTES[name], found.size)
    if sum(wanted.size or 0 for wanted in files.values()) > limit:
        raise too_large(str(resolved), limit)
    return Resolved(resolved, files, checkpoint, hub.explain)


class _HuggingFace:
    """https://huggingface.co/docs/hub/api"""

    def __init__(self, source: HubSource, web: Web, environ: Mapping[str, str]) -> None:
        if environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise FetchError(f"{source}: HF_HUB_OFFLINE is set, so nothing is fetched from the hub")
        token = environ.get("HF_TOKEN")
        self._source = source
        self._web = web
        self._endpoint = _endpoint(environ.get("HF_ENDPOINT") or "https://huggingface.co")
        self._credentials = {"authorization": f"Bearer {token}"} if token else {}

    def commit(self, revision: str | None) -> str:
        answer = self._json(f"/api/models/{self._source.repo}/revision/{percent(revision or 'main', safe='')}")
        return _commit(self._source, answer.get("sha") if isinstance(answer, dict) else None)

    def folder(self, commit: str, path: str | None) -> _Folder:
        below = f"/{percent(path)}" if path else ""
        entries = self._json(f"/api/models/{self._source.repo}/tree/{commit}{below}")
        files, folders = {}, []
        for entry in entries if isinstance(entries, list) else ():
            match entry:
                case {"type": "directory", "path": str(found)}:
                    folders.append(_name(found))
                case {"type": "file", "path": str(found), "lfs": {"oid": str(oid), "size": int(size)}}:
                    files[_name(found)] = _file(self._source, size, "sha256", oid)
                case {"type": "file", "path": str(found), "oid": str(oid), "size": int(size)}:
                    files[_name(found)] = _file(self._source, size, "blob", oid)
        return _Folder(files, tuple(folders))

    def file(self, commit: str, path: str) -> Ask:
        return Ask(f"{self._endpoint}/{self._source.repo}/resolve/{commit}/{percent(path)}", self._credentials)

    def explain(self, error: AnswerError) -> FetchError:
        """https://huggingface.co/docs/hub/en/models-gated; the codes are those that huggingface_hub 2.4 knows."""
        match error.headers.get("x-error-code"):
            case "RevisionNotFound":
                why = "the repository has no such revision"
            case "EntryNotFound":
                why = "the repository has no such folder or file"
            case "GatedRepo":
                why = "the repository is gated: accept its terms on its page, and set HF_TOKEN to that account's token"
            case _ if error.status in (401, 403, 404):
                why = "there is no such repository for us: check the name; a private one needs HF_TOKEN"
            case _:
                return error
        return FetchError(f"{self._source}: {why}")

    def _json(self, path: str) -> object:
        try:
            return self._web.json(Ask(self._endpoint + path, self._credentials), str(self._source))
        except AnswerError as error:
            raise self.explain(error) from None


class _ModelScope:
    """As modelscope_hub 0.5 asks it (its _legacy_api)."""

    def __init__(self, source: HubSource, web: Web, environ: Mapping[str, str]) -> None:
        endpoint = environ.get("MODELSCOPE_ENDPOINT") or environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
        token = environ.get("MODELSCOPE_API_TOKEN")
        self._source = source
        self._web = web
        self._base = f"{_endpoint(endpoint)}/api/v1/models/{source.repo}"
        # Some of its routes know the one, some the other.
        self._credentials = {"authorization": f"Bearer {token}", "cookie": f"m_session_id={token}"} if token else {}

    def commit(self, revision: str | None) -> str:
        if revision is not None and _COMMIT.fullmatch(revision):
            return revision
        match self._data("/commits", Ref=revision or "master", PageNumber="1", PageSize="1"):
            case {"Commit": [{"Id": str(commit)}, *_]}:
                return _commit(self._source, commit)
        raise FetchError(f"{self._source}: the repository has no such revision")

    def folder(self, commit: str, path: str | None) -> _Folder:
        root = {"Root": path} if path else {}
        match self._data("/repo/files", Revision=commit, Recursive="False", **root):
            case {"Files": list(entries)}:
                pass
            case _:  # it says so, and not 404
                raise FetchError(f"{self._source}: the repository has no such revision or folder")
        files, folders = {}, []
        for entry in entries:
            match entry:
                case {"Type": "tree", "Path": str(found)}:
                    folders.append(_name(found))
                case {"Type": "blob", "Path": str(found), "Size": int(size), "Sha256": str(sha256)}:
                    files[_name(found)] = _file(self._source, size, "sha256", sha256)
        return _Folder(files, tuple(folders))

    def file(self, commit: str, path: str) -> Ask:
        return Ask(f"{self._base}/repo?{urlencode({'Revision': commit, 'FilePath': path})}", self._credentials)

    def explain(self, error: AnswerError) -> FetchError:
        return self._unknown() if error.status in (401, 403, 404) else error

    def _data(self, path: str, **query: str) -> object:
        try:
            answer = self._web.json(Ask(f"{self._base}{path}?{urlencode(query)}", self._credentials), str(self._source))
        except AnswerError as error:
            raise self.explain(error) from None
        match answer:
            case {"Code": 200, "Data": data}:
                return data
        raise self._unknown()

    def _unknown(self) -> FetchError:
        why = "there is no such repository for us: check the name; a private one needs MODELSCOPE_API_TOKEN"
        return FetchError(f"{self._source}: {why}")


def _endpoint(text: str) -> str:
    """The server that the environment names; https unless it says otherwise."""
    return (text if text.startswith(("http://", "https://")) else f"https://{text}").rstrip("/")


def _commit(source: HubSource, found: object) -> str:
    if not isinstance(found, str) or not _COMMIT.fullmatch(found):
        raise FetchError(f"{source}: the hub does not say which commit that is")
    return found


def _file(source: HubSource, size: int, kind: Literal["sha256", "blob"], digest: str) -> _File:
    if size < 0 or not _HEX[kind].fullmatch(digest):
        raise FetchError(f"{source}: the hub lists a file with the digest {quote(digest)}")
    return _File(size, Digest(kind, digest))


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _below(folder: str | None, name: str) -> str:
    return f"{folder}/{name}" if folder else name
