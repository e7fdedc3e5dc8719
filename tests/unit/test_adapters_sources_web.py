"""Fetching over HTTP: cuts are gone on from, what is bounded stays bounded, and credentials go to one server."""

import hashlib
import random
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from adapters import Code, RefusedError
from adapters.sources.fetching import AnswerError, FetchError
from adapters.sources.web import Ask, Digest, Wanted, Web, web_client
from tests.fakes.fake_hub import Answer, FakeHub, Fault, Seen, certificate, fake_hub

CONTENT = random.Random(0).randbytes(300_000)
SECRET = {"authorization": "Bearer hf_secret"}


@pytest.fixture
def server() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        hub.files["bot"] = CONTENT
        yield hub


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def web(pauses: list[float]) -> Iterator[Web]:
    with web_client() as client:
        yield Web(client, pauses.append)


def wanted(server: FakeHub, name: str = "bot", *, content: bytes = CONTENT, most: int = 1 << 20) -> Wanted:
    digest = Digest("sha256", hashlib.sha256(content).hexdigest())
    return Wanted(name, lambda: Ask(f"{server.url}/files/{name}", SECRET), digest, most)


def ignore(done: int, total: int | None) -> None:
    pass


def first(count: int, change: Callable[[Answer], Answer]) -> Fault:
    """Spoils the first answers."""
    seen = Counter[str]()

    def fault(_: Seen, answer: Answer) -> Answer:
        seen["answers"] += 1
        return change(answer) if seen["answers"] <= count else answer

    return fault


def ranges(server: FakeHub) -> list[str | None]:
    return [seen.headers.get("range") for seen in server.seen]


def test_a_file_comes_whole_and_its_progress_is_told(server: FakeHub, web: Web, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    web.fetch(wanted(server), tmp_path / "file", lambda done, total: told.append((done, total)))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert ranges(server) == [None]


def test_a_cut_file_is_gone_on_with_where_it_ended(server: FakeHub, web: Web, tmp_path: Path) -> None:
    server.fault = lambda _, answer: replace(answer, cut=100_000)
    web.fetch(wanted(server), tmp_path / "file", ignore)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100000-", "bytes=200000-"]


def test_as_long_as_something_comes_it_is_tried_again(
    server: FakeHub, web: Web, pauses: list[float], tmp_path: Path
) -> None:
    server.fault = lambda _, answer: replace(answer, cut=20_000)
    web.fetch(wanted(server), tmp_path / "file", ignore)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(pauses) == 14
    assert max(pauses) < 1.0


def test_when_nothing_comes_it_is_given_up_after_some_attempts_ever_further_apart(
    server: FakeHub, web: Web, pauses: list[float], tmp_path: Path
) -> None:
    server.fault = lambda _, answer: replace(answer, cut=0)
    with pytest.raises(FetchError, match=r"bot: the connection was cut \(5 attempts\)"):
        web.fetch(wanted(server), tmp_path / "file", ignore)
    assert len(server.seen) == 5
    assert len(pauses) == 4
    assert sum(pauses) < 15.0


def test_what_had_come_before_is_gone_on_with(server: FakeHub, web: Web, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT[:123_456])
    web.fetch(wanted(server), tmp_path / "file", ignore)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert ranges(server) == ["bytes=123456-"]


@pytest.mark.parametrize("known", [True, False])
def test_what_had_come_whole_is_not_fetched_again(known: bool, server: FakeHub, web: Web, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    web.fetch(replace(wanted(server), size=len(CONTENT) if known else None), tmp_path / "file", ignore)
    assert ranges(server) == ([] if known else [f"bytes={len(CONTENT)}-"])


@pytest.mark.parametrize("before", [b"of another file", CONTENT[:-1] + b"!", CONTENT + b"more"])
def test_what_had_come_of_another_file_is_fetched_anew(
    before: bytes, server: FakeHub, web: Web, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(before)
    web.fetch(wanted(server), tmp_path / "file", ignore)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_knows_no_ranges_is_read_from_the_beginning(server: FakeHub, web: Web, tmp_path: Path) -> None:
    server.fault = first(1, lambda answer: replace(answer, cut=100_000))
    (tmp_path / "file").write_bytes(CONTENT[:50_000])
    cut = server.fault
    server.fault = lambda seen, answer: replace(cut(seen, answer), ranges=False)
    web.fetch(wanted(server), tmp_path / "file", ignore)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_goes_on_elsewhere_is_asked_for_all_of_it(server: FakeHub, web: Web, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT[:50_000])
    server.fault = lambda _, answer: replace(answer, headers={"content-range": f"bytes 0-1/{len(CONTENT)}"})
    web.fetch(wanted(server), tmp_path / "file", ignore)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert ranges(server) == ["bytes=50000-", None]


def test_a_server_that_cuts_and_goes_on_elsewhere_is_given_up(
    server: FakeHub, web: Web, pauses: list[float], tmp_path: Path
) -> None:
    server.fault = lambda _, answer: replace(answer, cut=1000, headers={"content-range": "bytes 0-1/2"})
    with pytest.raises(FetchError, match="attempts"):
        web.fetch(wanted(server), tmp_path / "file", ignore)
    assert len(pauses) < 10


@pytest.mark.parametrize("before", [b"", CONTENT[:1000]])
def test_another_content_is_refused_and_not_kept(before: bytes, server: FakeHub, web: Web, tmp_path: Path) -> None:
    server.files["bot"] = b"another" * 1000
    (tmp_path / "file").write_bytes(before)
    with pytest.raises(RefusedError) as refused:
        web.fetch(wanted(server), tmp_path / "file", ignore)
    assert refused.value.findings[0].code is Code.DIGEST
    assert hashlib.sha256(CONTENT).hexdigest() in str(refused.value)
    assert not (tmp_path / "file").exists()


def test_a_file_that_is_said_to_be_too_large_is_not_read(server: FakeHub, web: Web, tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as refused:
        web.fetch(wanted(server, most=1000), tmp_path / "file", ignore)
    assert refused.value.findings[0].code is Code.TOO_LARGE
    assert not (tmp_path / "file").exists()


def test_a_file_that_has_no_end_is_given_up(server: FakeHub, web: Web, tmp_path: Path) -> None:
    chunked = b"".join(b"%x\r\n%s\r\n" % (4096, bytes(4096)) for _ in range(100))
    headers = {"transfer-encoding": "chunked", "content-length": ""}
    server.files["bot"] = chunked
    server.fault = lambda _, answer: replace(answer, headers=headers)
    with pytest.raises(RefusedError) as refused:
        web.fetch(wanted(server, most=100_000), tmp_path / "file", ignore)
    assert refused.value.findings[0].code is Code.TOO_LARGE
    assert (tmp_path / "file").stat().st_size <= 100_000


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(
    status: int, server: FakeHub, web: Web, pauses: list[float], tmp_path: Path
) -> None:
    server.fault = first(2, lambda answer: replace(answer, body=b"", status=status, headers={"retry-after": "7"}))
    web.fetch(wanted(server), tmp_path / "file", ignore)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert pauses == [7.0, 7.0]


def test_nobody_makes_us_wait_for_ever(server: FakeHub, web: Web, pauses: list[float], tmp_path: Path) -> None:
    server.fault = first(1, lambda answer: replace(answer, status=503, headers={"retry-after": "86400"}))
    web.fetch(wanted(server), tmp_path / "file", ignore)
    assert pauses == [30.0]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418])
def test_a_server_that_says_no_is_not_asked_again(status: int, server: FakeHub, web: Web, tmp_path: Path) -> None:
    server.fault = lambda _, answer: replace(answer, status=status)
    with pytest.raises(AnswerError, match=f"bot: the server answers {status}"):
        web.fetch(wanted(server), tmp_path / "file", ignore)
    assert len(server.seen) == 1


def test_a_silent_server_is_given_up_and_what_came_is_kept(server: FakeHub, tmp_path: Path) -> None:
    server.fault = first(1, lambda answer: replace(answer, cut=100_000, stall=True))
    with web_client() as client:
        client.timeout = httpx2.Timeout(1.0)
        Web(client, lambda seconds: None).fetch(wanted(server), tmp_path / "file", ignore)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100000-"]


def test_a_server_that_is_not_there_is_named_with_the_reason(web: Web, tmp_path: Path) -> None:
    with fake_hub() as server:
        asked = wanted(server)
    with pytest.raises(FetchError, match=r"bot: no connection .*refused"):
        web.fetch(asked, tmp_path / "file", ignore)


def test_credentials_stay_with_their_server_through_redirections(server: FakeHub, web: Web, tmp_path: Path) -> None:
    server.redirects["/files/bot"] = "/files/moved"
    server.files["moved"] = CONTENT
    web.fetch(wanted(server), tmp_path / "file", ignore)
    assert [seen.headers.get("authorization") for seen in server.seen] == ["Bearer hf_secret"] * 2


def test_credentials_go_to_no_other_server(server: FakeHub, web: Web, tmp_path: Path) -> None:
    with fake_hub() as other:
        other.files["moved"] = CONTENT
        server.redirects["/files/bot"] = f"{other.url}/files/moved"
        web.fetch(wanted(server), tmp_path / "file", ignore)
        assert "authorization" in server.seen[0].headers
        assert "authorization" not in other.seen[0].headers
        assert "cookie" not in other.seen[0].headers


def test_redirections_have_an_end(server: FakeHub, web: Web, tmp_path: Path) -> None:
    server.redirects["/files/bot"] = "/files/bot"
    with pytest.raises(FetchError, match="redirected more than 5 times"):
        web.fetch(wanted(server), tmp_path / "file", ignore)
    assert len(server.seen) == 5


@pytest.mark.parametrize("to", ["http://localhost:1/x", "file:///etc/passwd", "ftp://127.0.0.1/x", "http://[::1/"])
def test_nothing_but_https_and_the_named_server_is_followed_to(
    to: str, server: FakeHub, web: Web, tmp_path: Path
) -> None:
    server.redirects["/files/bot"] = to
    with pytest.raises(FetchError, match=r"only https is followed|names no address"):
        web.fetch(wanted(server), tmp_path / "file", ignore)
    assert not (tmp_path / "file").exists()


def test_https_is_not_left_and_its_certificate_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    trusted, context = certificate(tmp_path)
    with fake_hub() as plain, fake_hub(context) as server:
        server.files["bot"] = plain.files["moved"] = CONTENT
        with web_client() as client, pytest.raises(FetchError, match="certificate"):
            Web(client, pauses.append).fetch(wanted(server), tmp_path / "file", ignore)
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        with web_client() as client:
            Web(client, pauses.append).fetch(wanted(server), tmp_path / "file", ignore)
            assert (tmp_path / "file").read_bytes() == CONTENT
            server.redirects["/files/bot"] = f"{plain.url}/files/moved"
            with pytest.raises(FetchError, match="only https is followed"):
                Web(client, pauses.append).fetch(wanted(server), tmp_path / "other", ignore)
        assert plain.seen == []


def test_proxies_of_the_environment_are_used(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    """The fake server stands in for the proxy: it is asked for the whole URL."""
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.redirects["/files/bot"] = "/"
    asked = replace(wanted(server), ask=lambda: Ask("http://hub.invalid/files/bot"))
    with web_client() as client, pytest.raises(FetchError):
        Web(client, pauses.append).fetch(asked, tmp_path / "file", ignore)
    assert server.seen[0].path == "http://hub.invalid/files/bot"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ALL_PROXY", "socks5://me:hunter2@127.0.0.1:1", "a proxy in the environment"),
        ("HTTPS_PROXY", "ftp://me:hunter2@127.0.0.1:1", "a proxy in the environment"),
        ("SSL_CERT_FILE", "/nowhere/at/all", "SSL_CERT_FILE .* cannot be used"),
        ("SSL_CERT_FILE", __file__, "SSL_CERT_FILE .* cannot be used"),
    ],
)
def test_what_the_environment_has_wrong_is_said_without_its_passwords(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(FetchError, match=words) as error:
        web_client()
    assert "hunter2" not in str(error.value)


def test_json_is_bounded_and_strict(server: FakeHub, web: Web) -> None:
    server.files |= {"good": b'{"a": [1]}', "bad": b"<html>", "long": b" " * (9 << 20)}
    assert web.json(Ask(f"{server.url}/files/good"), "it") == {"a": [1]}
    with pytest.raises(FetchError, match="it: the answer is no JSON"):
        web.json(Ask(f"{server.url}/files/bad"), "it")
    with pytest.raises(FetchError, match="it: the answer is longer"):
        web.json(Ask(f"{server.url}/files/long"), "it")


def test_json_is_asked_for_again_when_the_server_is_in_trouble(server: FakeHub, web: Web, pauses: list[float]) -> None:
    server.files["good"] = b"{}"
    server.fault = first(3, lambda answer: replace(answer, status=503))
    assert web.json(Ask(f"{server.url}/files/good"), "it") == {}
    assert len(pauses) == 3


def test_credentials_are_not_in_what_is_printed() -> None:
    assert "hf_secret" not in repr(Ask("https://host/x", SECRET))


def test_a_digest_of_git_is_that_of_git(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello\n")
    assert Digest("blob", "ce013625030ba8dba906f756967f9e9ca394464a").fits(tmp_path / "file")  # git hash-object
    assert not Digest("blob", "ce013625030ba8dba906f756967f9e9ca394464b").fits(tmp_path / "file")


def test_the_default_is_to_check_certificates() -> None:
    with web_client() as client:
        context = client._transport._pool._ssl_context  # type: ignore[attr-defined]
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
