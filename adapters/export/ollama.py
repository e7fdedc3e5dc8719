"""Creates a model in an Ollama server: the file as a blob, then the model from it.

The protocol is that of Ollama's own client (server/routes.go, server/create.go, api/client.go): HEAD and POST
/api/blobs/sha256:…, then POST /api/create, which answers with a line of JSON for each thing that it does.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from adapters.merge.errors import MergeError
from adapters.merge.progress import Progress, Tell

DEFAULT_URL = "http://127.0.0.1:11434"

_PATIENCE = 10.0  # seconds for an answer to a question
_QUIET = 900.0  # seconds between two lines while a model is created: quantising a large one says nothing for long
_PIECE = 1 << 20
_MAX_ANSWER = 64 << 20
_MAX_LINE = 1 << 20


@dataclass(frozen=True, slots=True)
class NewModel:
    """What is created under `name` from a GGUF file; the server quantises it to `quantize` where that is given."""

    name: str
    file: Path
    template: str | None
    stops: Sequence[str] = field(default_factory=tuple)
    quantize: str | None = None


class Ollama:
    """The server at `url`. Every call raises MergeError where it does not answer, or refuses."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise MergeError(f"{url!a} is no URL of an Ollama server: write it as {DEFAULT_URL}")
        self._secure = parts.scheme == "https"
        self._host, self._path = parts.hostname, parts.path.rstrip("/")
        self._port = parts.port or (443 if self._secure else 11434)
        self._url = f"{parts.scheme}://{self._host}:{self._port}{self._path}"

    def version(self) -> str:
        """Of the server."""
        return str(self._json("GET", "/api/version").get("version", "unknown"))

    def has(self, name: str) -> bool:
        """Whether there is a model of this name; one without a tag means `latest`."""
        listed = self._json("GET", "/api/tags").get("models")
        names = (
            {str(model.get("name")) for model in listed if isinstance(model, dict)} if isinstance(listed, list) else ()
        )
        return (name if ":" in name.rpartition("/")[2] else f"{name}:latest") in names

    def create(self, model: NewModel, tell: Tell) -> None:
        """Uploads the file, unless the server has it, and creates the model; telling how far it is."""
        digest = self._upload(model.file, tell)
        wanted: dict[str, object] = {"model": model.name, "files": {model.file.name: digest}, "stream": True}
        if model.template is not None:
            wanted["template"] = model.template
        if model.stops:
            wanted["parameters"] = {"stop": [*model.stops]}
        if model.quantize is not None:
            wanted["quantize"] = model.quantize
        with self._ask("POST", "/api/create", json.dumps(wanted).encode(), patience=_QUIET) as answer:
            self._require(answer, 200)
            last = ""
            while line := answer.readline(_MAX_LINE):
                said = _object(line)
                if "error" in said:
                    raise MergeError(f"Ollama does not create {model.name}: {said['error']}")
                last = str(said.get("status", ""))
                done, total = said.get("completed"), said.get("total")
                tell({"phase": "Creating", "done": done or 0, "total": total or 0, "unit": "bytes", "text": last})
            if last != "success":
                raise MergeError(f"Ollama stopped while it created {model.name} (last: {last or 'nothing'!a})")

    def _upload(self, file: Path, tell: Tell) -> str:
        size = file.stat().st_size
        progress = Progress(tell, "Uploading", size)
        sha = hashlib.sha256()
        with file.open("rb") as stream:
            while piece := stream.read(_PIECE):
                sha.update(piece)
        digest = f"sha256:{sha.hexdigest()}"
        with self._ask("HEAD", f"/api/blobs/{digest}") as answer:
            if answer.status == 200:
                progress.reach(size)
                return digest
        with self._ask("POST", f"/api/blobs/{digest}", _counted(file, progress), size, _QUIET) as answer:
            self._require(answer, 200, 201)
        return digest

    def _json(self, method: str, path: str) -> Mapping[str, object]:
        with self._ask(method, path) as answer:
            self._require(answer, 200)
            return _object(answer.read(_MAX_ANSWER))

    @contextmanager
    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] = b"",
        size: int | None = None,
        patience: float = _PATIENCE,
    ) -> Iterator[HTTPResponse]:
        kind = HTTPSConnection if self._secure else HTTPConnection
        connection = kind(self._host, self._port, timeout=patience)
        headers = {"Content-Type": "application/json"} if size is None else {"Content-Length": str(size)}
        try:
            connection.request(method, self._path + path, body or None, headers)
            yield connection.getresponse()
        except (OSError, HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise MergeError(f"Ollama at {self._url} does not answer ({reason}): look at --ollama-url") from error
        finally:
            connection.close()

    def _require(self, answer: HTTPResponse, *allowed: int) -> None:
        if answer.status in allowed:
            return
        said = answer.read(_MAX_LINE)
        try:
            reason = _object(said).get("error")
        except MergeError:
            reason = None
        raise MergeError(f"Ollama at {self._url} refuses (status {answer.status}): {reason or 'is this Ollama?'}")


def _counted(file: Path, progress: Progress) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            yield piece
            progress.add(len(piece))


def _object(data: bytes) -> Mapping[str, object]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise MergeError(f"what answers there is not Ollama ({data[:60]!a})") from error
    if not isinstance(value, dict):
        raise MergeError(f"what answers there is not Ollama ({data[:60]!a})")
    return value
