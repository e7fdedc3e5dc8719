"""Fetches files over HTTP: bounded, checked against a digest, and taken up again where the connection was cut.

Redirections are followed here and not by the client: to https only (or, where people named a server by http:// in the
environment, on that server), a few times, and credentials go to no other server than the one that they are for.
"""

import hashlib
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Literal

import httpx2

from adapters.files import too_large
from adapters.findings import Code, Finding, RefusedError
from adapters.sources.fetching import AnswerError, FetchError
from adapters.strict_json import StrictJsonError, loads

_CHUNK = 1 << 18  # bytes
_MAX_JSON = 8 << 20
_MAX_REDIRECTS = 5
_ATTEMPTS = 5  # in a row that bring nothing
_FIRST_DELAY, _LONGEST_DELAY = 0.25, 10.0  # seconds between them
_CONNECT, _SILENCE = 10.0, 30.0  # seconds
_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-[0-9]{1,18}|\*)/([0-9]{1,18}|\*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request. `credentials` are headers that no other server gets."""

    url: str
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Digest:
    """Of a file: `sha256` of its bytes, or git's name for it as a `blob` (SHA-1 of its size and bytes)."""

    kind: Literal["sha256", "blob"]
    value: str

    def fits(self, path: Path) -> bool:
        """Reads the file."""
        with path.open("rb") as file:
            if self.kind == "sha256":
                return hashlib.file_digest(file, "sha256").hexdigest() == self.value
            # git's own names, where the hub gives no other; what counts as the version is the store's SHA-256.
            total = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
            while chunk := file.read(_CHUNK):
                total.update(chunk)
            return total.hexdigest() == self.value


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to fetch. `shown` names it to people; `ask` makes the request anew for each attempt, as signatures age;
    `most` is the number of bytes it may have, `size` what it is said to have."""

    shown: str
    ask: Callable[[], Ask]
    digest: Digest
    most: int
    size: int | None = None


class _Interrupted(Exception):
    """May be better at the next attempt, not before `after` seconds."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


class Web:
    """One import's way to servers. Proxies and certificates are those of the environment, as for httpx."""

    def __init__(self, client: httpx2.Client, sleep: Callable[[float], None] = time.sleep) -> None:
        self._client = client
        self._sleep = sleep

    def json(self, ask: Ask, shown: str) -> object:
        """The JSON that the server answers with. Raises FetchError."""

        def attempt() -> bytes:
            with self._answer(ask, {}, shown) as answer:
                _expect(answer, shown, 200)
                data = b""
                for chunk in answer.iter_raw():
                    data += chunk
                    if len(data) > _MAX_JSON:
                        raise FetchError(f"{shown}: the answer is longer than {_MAX_JSON} bytes")
                return data

        failures = 0
        while True:
            try:
                return loads(attempt())
            except StrictJsonError:
                raise FetchError(f"{shown}: the answer is no JSON") from None
            except _Interrupted as error:
                failures += 1
                self._pause(error, failures, shown)

    def fetch(self, wanted: Wanted, path: Path, progress: Callable[[int, int | None], None]) -> None:
        """Brings the file to `path`, going on with what is there.

        Raises FetchError when it does not come, RefusedError when what came is not what was wanted; OSError: the disk.
        """
        while True:
            resumed = self._complete(wanted, path, progress)
            if wanted.digest.fits(path):
                return
            path.unlink()
            if not resumed:  # else what was there may have been of another file
                raise RefusedError(
                    Finding(
                        Code.DIGEST,
                        f"what {wanted.shown} answers with does not have the digest {wanted.digest.value}",
                        "make sure of the digest (sha256sum prints it), and of the server",
                    )
                )

    def _complete(self, wanted: Wanted, path: Path, progress: Callable[[int, int | None], None]) -> bool:
        """Until all of the file is there; whether there was something of it before."""
        had = most = _size(path)
        failures = 0
        while True:
            try:
                self._go_on(wanted, path, progress)
                return had > 0
            except _Interrupted as error:
                failures = 1 if _size(path) > most else failures + 1
                most = max(most, _size(path))
                self._pause(error, failures, wanted.shown)

    def _go_on(self, wanted: Wanted, path: Path, progress: Callable[[int, int | None], None]) -> None:
        have = _size(path)
        if have == wanted.size:
            return
        if have > (wanted.most if wanted.size is None else wanted.size):
            path.unlink()
            have = 0
        headers = {"range": f"bytes={have}-"} if have else {}
        with self._answer(wanted.ask(), headers, wanted.shown) as answer:
            _expect(answer, wanted.shown, 200, *((206, 416) if have else ()))
            begin, total = _extent(answer, have)
            if have and begin == total:
                return  # it was all there
            if begin > have:
                path.unlink()
                raise _Interrupted("the server does not go on where it was asked to")
            if (total or 0) > wanted.most:
                raise too_large(wanted.shown, wanted.most)
            with path.open("r+b" if path.exists() else "xb") as file:
                file.truncate(begin)
                file.seek(begin)
                for chunk in answer.iter_raw():  # as they come: a cut loses none
                    begin += len(chunk)
                    if begin > wanted.most:
                        raise too_large(wanted.shown, wanted.most)
                    file.write(chunk)
                    progress(begin, total)

    def _pause(self, error: _Interrupted, failures: int, shown: str) -> None:
        if failures >= _ATTEMPTS:
            raise FetchError(f"{shown}: {error} ({failures} attempts)") from None
        delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2**failures)
        self._sleep(max(min(error.after, _SILENCE), delay * random.uniform(0.5, 1.0)))  # noqa: S311 - no secret

    @contextmanager
    def _answer(self, ask: Ask, headers: Mapping[str, str], shown: str) -> Iterator[httpx2.Response]:
        """The answer after redirections. Raises FetchError, _Interrupted (also while it is read)."""
        try:
            origin = url = httpx2.URL(ask.url)
            for _ in range(_MAX_REDIRECTS):
                credentials = ask.credentials if _same_server(origin, url) else {}
                with self._client.stream("GET", url, headers={**headers, **credentials}) as answer:
                    location = answer.headers.get("location")
                    if answer.status_code not in _REDIRECTS or not location:
                        yield answer
                        return
                url = _redirected(origin, url.join(location), shown)
        except httpx2.InvalidURL:
            raise FetchError(f"{shown}: the server names no address that can be asked") from None
        except httpx2.HTTPError as error:
            raise _Interrupted(_in_words(error)) from None
        raise FetchError(f"{shown}: redirected more than {_MAX_REDIRECTS} times")


def web_client() -> httpx2.Client:
    """For `Web`: no cookies, no compression, no redirections of its own. Raises FetchError when the environment names
    proxies or certificates that cannot be used."""
    try:
        return httpx2.Client(
            headers={"user-agent": "lora-gateway", "accept-encoding": "identity"},
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=httpx2.Timeout(_SILENCE, connect=_CONNECT),
            follow_redirects=False,
        )
    except (ImportError, ValueError, httpx2.InvalidURL):
        raise FetchError(
            "a proxy in the environment (HTTPS_PROXY, ALL_PROXY …) is none: write http://host:port"
        ) from None
    except OSError as error:
        why = error.strerror or "no certificates"
        raise FetchError(f"SSL_CERT_FILE or SSL_CERT_DIR in the environment cannot be used ({why})") from None


def _same_server(one: httpx2.URL, other: httpx2.URL) -> bool:
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def _redirected(origin: httpx2.URL, url: httpx2.URL, shown: str) -> httpx2.URL:
    """The URL if it may be followed to."""
    plain = origin.scheme == url.scheme == "http" and origin.host == url.host
    if url.scheme != "https" and not plain:
        raise FetchError(f"{shown}: redirected to {url.scheme}://{url.host}, and only https is followed")
    return url


def _expect(answer: httpx2.Response, shown: str, *statuses: int) -> None:
    status = answer.status_code
    if status in _PASSING:
        after = answer.headers.get("retry-after", "")
        raise _Interrupted(f"the server answers {status}", float(after) if after.isdecimal() else 0.0)
    if status not in statuses:
        raise AnswerError(f"{shown}: the server answers {status}", status, answer.headers)


def _extent(answer: httpx2.Response, have: int) -> tuple[int, int | None]:
    """Where the bytes of the answer begin in the file, and how many that has in all; beyond what we have, when they do
    not begin where they were asked for."""
    if answer.status_code == 200:  # all of it, even if only the rest was asked for
        length = answer.headers.get("content-length", "")
        return 0, int(length) if length.isdecimal() else None
    found = _RANGE.fullmatch(answer.headers.get("content-range", ""))
    total = int(found[2]) if found and found[2] != "*" else None
    wanted = total == have if answer.status_code == 416 else found is not None and found[1] == str(have)
    return (have if wanted else have + 1), total


def _in_words(error: httpx2.HTTPError) -> str:
    match error:
        case httpx2.ConnectTimeout():
            return f"no connection within {_CONNECT:g} s"
        case httpx2.TimeoutException():
            return f"nothing came for {_SILENCE:g} s"
        case httpx2.ConnectError() | httpx2.ProxyError():
            return f"no connection ({error})"
        case _:
            return "the connection was cut"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
