"""A real HTTP server that keeps repositories as the Hugging Face hub and ModelScope do, buckets as S3 does, and files.

    with fake_hub() as server:
        server.repository("org/bot", {"adapter_config.json": b"…"})     # both hubs; commit: server.commit
        server.objects["bucket/key.tar"] = b"…"                         # S3, path style
        server.files["bot.tar"] = b"…"                                  # GET /files/bot.tar

It answers as the real ones do where the gateway looks: ranges, redirections to the place of the bytes, error codes,
listings with digests. `server.fault` is asked before each answer with bytes, and may spoil it.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from adapters.sources.s3 import authorization

COMMIT = hashlib.sha1(b"the commit").hexdigest()


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    path: str  # with its query
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """What a request for bytes is answered with; a fault changes it.

    `cut`: bytes after which the connection is closed, whatever was announced. `stall`: then it stays open instead, and
    nothing comes.
    """

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    ranges: bool = True
    cut: int | None = None
    stall: bool = False


Fault = Callable[[Seen, Answer], Answer]


@dataclass
class FakeHub:
    url: str
    commit: str = COMMIT
    branches: tuple[str, ...] = ("main", "master", "v1", "feature/x")
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)  # path → where to
    elsewhere: str | None = None  # where the hub's bytes are: another server
    token: str | None = None  # the repositories are for who has it
    gated: bool = False
    secret: tuple[str, str] | None = None  # key id and secret of the bucket's owner
    region: str = "us-east-1"
    lfs: str = ".safetensors"  # such files are listed with their SHA-256, others with git's name
    lie: str | None = None  # the digest that is listed for every file
    fault: Fault | None = None
    seen: list[Seen] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def repository(self, name: str, files: Mapping[str, bytes]) -> None:
        self.repositories[name] = dict(files)

    def paths(self) -> list[str]:
        """Of the requests, in order, without queries."""
        return [seen.path.partition("?")[0] for seen in self.seen]


@contextmanager
def fake_hub(tls: ssl.SSLContext | None = None) -> Iterator[FakeHub]:
    """Serves on a free port of loopback until the block ends."""
    server = _Server(("127.0.0.1", 0), _Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    hub = FakeHub(f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.stop.set()
        server.shutdown()
        thread.join()
        server.server_close()


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that nobody else trusts (its file), and a server's context with it."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    extensions = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *extensions], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), OSError):  # clients leave as they like
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> FakeHub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.hub.seen.append(Seen(self.path, {name.lower(): value for name, value in self.headers.items()}))
        url = urlsplit(self.path)
        path, query = unquote(url.path), {name: values[0] for name, values in parse_qs(url.query).items()}
        if to := self.hub.redirects.get(path):
            self._say(302, headers={"location": to})
        elif path.startswith("/api/v1/models/"):
            self._modelscope(path.removeprefix("/api/v1/models/"), query)
        elif path.startswith("/api/models/"):
            self._hugging_face(path.removeprefix("/api/models/"))
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([0-9a-f]+)/(.+)", path):
            if self.hub.gated:  # everybody may see what there is
                self._say(403, headers={"x-error-code": "GatedRepo"})
            elif self._admitted() and self._known(found[1], found[2]):
                self._redirect_or_bytes(self.hub.repositories[found[1]].get(found[3]))
        elif path.startswith("/files/"):
            self._bytes(self.hub.files.get(path.removeprefix("/files/")))
        elif path.startswith("/bytes/"):
            digest = path.removeprefix("/bytes/")
            everything = [file for files in self.hub.repositories.values() for file in files.values()]
            self._bytes(next((file for file in everything if hashlib.sha256(file).hexdigest() == digest), None))
        else:
            self._bucket(path.removeprefix("/"))

    # The Hugging Face hub

    def _hugging_face(self, path: str) -> None:
        if not self._admitted():
            return
        repo, verb, rest = re.fullmatch(r"([^/]+/[^/]+)/(revision|tree)/(.+)", path).groups()  # type: ignore[union-attr]
        revision, _, folder = (rest, "", "") if verb == "revision" else rest.partition("/")
        if not self._known(repo, revision):
            return
        if verb == "revision":
            self._json({"id": repo, "sha": self.hub.commit, "siblings": []})
            return
        entries = []
        for name, content in self._listed(repo, folder):
            if content is None:
                entries.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": name})
                continue
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"type": "file", "oid": self.hub.lie or blob, "size": len(content), "path": name}
            if name.endswith(self.hub.lfs):
                sha256 = self.hub.lie or hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
            entries.append(entry)
        if entries or not folder:
            self._json(entries)
        else:
            self._say(404, headers={"x-error-code": "EntryNotFound"})

    def _admitted(self) -> bool:
        if self.hub.token is not None and self.headers["authorization"] != f"Bearer {self.hub.token}":
            self._say(401, headers={"x-error-code": "RepoNotFound"})
        else:
            return True
        return False

    def _known(self, repo: str, revision: str) -> bool:
        if repo not in self.hub.repositories:
            self._say(404, headers={"x-error-code": "RepoNotFound"})
        elif revision not in (self.hub.commit, *self.hub.branches):
            self._say(404, headers={"x-error-code": "RevisionNotFound"})
        else:
            return True
        return False

    def _listed(self, repo: str, folder: str) -> list[tuple[str, bytes | None]]:
        """Full names in the folder; None for a folder in it."""
        prefix = f"{folder}/" if folder else ""
        found: dict[str, bytes | None] = {}
        for name, content in self.hub.repositories[repo].items():
            if name.startswith(prefix):
                first, slash, _ = name.removeprefix(prefix).partition("/")
                found[prefix + first] = None if slash else content
        return sorted(found.items())

    # ModelScope

    def _modelscope(self, path: str, query: Mapping[str, str]) -> None:
        repo, verb = re.fullmatch(r"([^/]+/[^/]+)/(commits|repo/files|repo)", path).groups()  # type: ignore[union-attr]
        cookie = f"m_session_id={self.hub.token}"
        if repo not in self.hub.repositories or (self.hub.token and self.headers["cookie"] != cookie):
            self._say(404, json.dumps({"Code": 10010205001, "Message": "record not found", "Success": False}).encode())
            return
        revision = query.get("Ref") or query["Revision"]
        known = revision in (self.hub.commit, *self.hub.branches)
        if verb == "commits":
            commits = [{"Id": self.hub.commit, "ShortId": self.hub.commit[:8]}] if known else None
            self._json({"Code": 200, "Data": {"Commit": commits}, "Success": True, "TotalCount": 1})
        elif verb == "repo/files":
            entries = [
                {"Type": "tree", "Path": name, "Name": name, "Size": 0}
                if content is None
                else {
                    "Type": "blob",
                    "Path": name,
                    "Name": name.rpartition("/")[2],
                    "Size": len(content),
                    "Sha256": self.hub.lie or hashlib.sha256(content).hexdigest(),
                    "Revision": "0" * 40,  # the file's own last change
                    "IsLFS": name.endswith(self.hub.lfs),
                }
                for name, content in self._listed(repo, query.get("Root", ""))
            ]
            self._json({"Code": 200, "Data": {"Files": entries if known and entries else None}, "Success": True})
        else:
            self._redirect_or_bytes(self.hub.repositories[repo].get(query["FilePath"]) if known else None)

    # S3

    def _bucket(self, path: str) -> None:
        if self.hub.secret is not None:
            names = ("x-amz-content-sha256", "x-amz-date", "x-amz-security-token")
            signed = {name: self.headers[name] for name in names if name in self.headers}
            url = f"{self.hub.url}{self.path}"
            asked = self.headers["authorization"] or ""
            if asked and f"/{self.hub.region}/s3/" not in asked:
                self._say(400, b"<Error/>", {"x-amz-bucket-region": self.hub.region})
                return
            if not asked or asked != authorization(url, signed, *self.hub.secret, self.hub.region):
                self._say(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
                return
        self._bytes(self.hub.objects.get(path))

    # Answers

    def _redirect_or_bytes(self, content: bytes | None) -> None:
        if content is not None and self.hub.elsewhere is not None:
            digest = hashlib.sha256(content).hexdigest()
            self._say(302, headers={"location": f"{self.hub.elsewhere}/bytes/{digest}?X-Signature=of-the-url"})
        else:
            self._bytes(content)

    def _bytes(self, content: bytes | None) -> None:
        if content is None:
            self._say(404, headers={"x-error-code": "EntryNotFound"})
            return
        answer = Answer(content)
        if self.hub.fault is not None:
            answer = self.hub.fault(self.hub.seen[-1], answer)
        status, body, headers = answer.status, answer.body, dict(answer.headers)
        asked = re.fullmatch(r"bytes=([0-9]+)-", self.headers["range"] or "")
        if asked and answer.ranges and status == 200:
            begin = int(asked[1])
            if begin >= len(body):
                status, headers["content-range"], body = 416, f"bytes */{len(body)}", b""
            else:
                status = 206
                headers.setdefault("content-range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
                body = body[begin:]
        self._say(status, body, headers, answer.cut, answer.stall)

    def _json(self, value: object) -> None:
        self._say(200, json.dumps(value).encode())

    def _say(
        self,
        status: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        cut: int | None = None,
        stall: bool = False,
    ) -> None:
        headers = {"content-length": str(len(body)), **(headers or {})}
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body if cut is None else body[:cut])
            if stall:
                self.hub.stop.wait()
            if cut is not None or stall:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            self.close_connection = True  # the client left first
