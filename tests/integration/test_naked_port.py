"""Table 0.1 and the smuggling set of the reliability goals (B-1 to B-4), against the listening port itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

from gateway.api.guard import EdgeLimits
from tests.fakes.rawclient import Answer, RawClient
from tests.fakes.served import Served, served
from tests.patience import LATE, near

KIB = 1024
MIB = 1024 * KIB
CRLF = b"\r\n"
HOST = b"Host: localhost:8000"


def request(*lines: bytes, method: bytes = b"POST", target: bytes = b"/v1/x", host: bytes = HOST) -> bytes:
    """A head; `lines` come after Host."""
    return CRLF.join([method + b" " + target + b" HTTP/1.1", host, *lines, b"", b""])


def sized(body: bytes, *lines: bytes) -> bytes:
    return request(b"Content-Length: %d" % len(body), *lines) + body


def chunked(*raw: bytes, lines: tuple[bytes, ...] = ()) -> bytes:
    return request(b"Transfer-Encoding: chunked", *lines) + b"".join(raw)


GET = request(method=b"GET")
GOOD = sized(b"good")
END = b"0\r\n\r\n"


@dataclass
class Echo:
    """Answers with what it understood; counts the requests that reached it."""

    seen: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request: dict[str, Any] = {"method": scope["method"], "path": scope["path"]}
        request["query"] = scope["query_string"].decode()
        self.seen.append(request)
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        request["headers"] = [[name.decode(), value.decode()] for name, value in scope["headers"]]
        request["body"] = body[:200].decode("latin-1")
        request["size"] = len(body)
        answer = json.dumps(request).encode()
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]}
        )
        await send({"type": "http.response.body", "body": answer})


@dataclass
class Port:
    """The attacked server."""

    server: Served
    echo: Echo

    def exchange(self, data: bytes) -> list[Answer]:
        """Sends the bytes, says that nothing follows only after the server has had its say, and reads all answers."""
        with RawClient(self.server.port) as client:
            client.try_send(data)
            return client.answers()

    def still_serves(self) -> None:
        with RawClient(self.server.port) as client:
            client.send(GOOD)
            assert client.answer().json()["body"] == "good"


@pytest.fixture(scope="module")
def port() -> Iterator[Port]:
    echo = Echo()
    with served(echo, EdgeLimits(keep_alive=3)) as server:
        yield Port(server, echo)


def assert_refused(answers: list[Answer], status: int) -> None:
    assert [answer.status for answer in answers] == [status]
    answer = answers[0]
    assert answer.complete
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["connection"] == "close"
    assert len(answer.headers["x-request-id"]) >= 16
    assert len(answer.body) < 2 * KIB
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert error["code"]


# What must be refused: (name, bytes, status).
HEADS: list[tuple[str, bytes, int]] = [
    # the request line
    ("no version", b"GET /\r\n\r\n", 400),
    ("HTTP/0.9", b"GET / HTTP/0.9\r\n\r\n", 400),
    ("HTTP/1.2", b"GET / HTTP/1.2\r\n" + HOST + b"\r\n\r\n", 400),
    ("HTTP/2.0", b"GET / HTTP/2.0\r\n" + HOST + b"\r\n\r\n", 400),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ("lower-case version", b"GET / http/1.1\r\n" + HOST + b"\r\n\r\n", 400),
    ("version with a tail", b"GET / HTTP/1.1x\r\n" + HOST + b"\r\n\r\n", 400),
    ("space after the version", b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n\r\n", 400),
    ("unknown method", request(method=b"HACK"), 400),
    ("lower-case method", request(method=b"get"), 400),
    ("method with NUL", request(method=b"GE\0T"), 400),
    ("tab for the space", b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n\r\n", 400),
    ("CONNECT", request(method=b"CONNECT", target=b"localhost:8000"), 400),
    ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32), 400),
    ("an SSH banner", b"SSH-2.0-OpenSSH_9.6\r\n", 400),
    ("binary", b"\xff\xfe\x00\x01\r\n\r\n", 400),
    # the target
    ("relative target", request(target=b"v1/x"), 400),
    ("asterisk", request(method=b"OPTIONS", target=b"*"), 400),
    ("fragment", request(target=b"/v1/x#a"), 400),
    ("space in the target", request(target=b"/v1/ x"), 400),
    ("tab in the target", request(target=b"/v1/\tx"), 400),
    ("NUL in the target", request(target=b"/v1/\0x"), 400),
    ("control character in the target", request(target=b"/v1/\x01x"), 400),
    ("bytes outside ASCII in the path", request(target=b"/v1/\xc3\xa9"), 400),
    ("bytes outside ASCII in the query", request(target=b"/v1/x?\xc3\xa9"), 400),
    ("URL of another host", request(target=b"http://elsewhere/v1/x"), 400),
    ("URL of another port", request(target=b"http://localhost:8001/v1/x"), 400),
    ("URL with user", request(target=b"http://a@localhost:8000/v1/x"), 400),
    ("URL with backslash", request(target=b"http://localhost:8000\\@elsewhere/v1/x"), 400),
    ("URL with fragment", request(target=b"http://localhost:8000#@elsewhere/"), 400),
    ("URL of another scheme", request(target=b"gopher://localhost:8000/v1/x"), 400),
    ("authority as target", request(target=b"localhost:8000"), 400),
    ("target of 9 KiB", request(target=b"/" + b"a" * 9 * KIB), 414),
    ("target of 40 KiB", request(target=b"/" + b"a" * 40 * KIB), 414),
    ("target of 200 KiB", request(target=b"/" + b"a" * 200 * KIB), 414),
    ("target of 1 MiB without an end", b"GET /" + b"a" * MIB, 414),
    # Host
    ("no Host", b"GET / HTTP/1.1\r\n\r\n", 400),
    ("two Hosts", request(HOST), 400),
    ("two different Hosts", request(b"Host: elsewhere"), 400),
    ("empty Host", request(host=b"Host:"), 400),
    ("Host a/#@x", request(host=b"Host: a/#@x"), 400),
    ("Host with path", request(host=b"Host: a/b"), 400),
    ("Host with query", request(host=b"Host: a?b"), 400),
    ("Host with user", request(host=b"Host: a@b"), 400),
    ("Host with backslash", request(host=b"Host: a\\b"), 400),
    ("Host with space", request(host=b"Host: a b"), 400),
    ("Host with comma", request(host=b"Host: a, b"), 400),
    ("Host with percent", request(host=b"Host: a%00b"), 400),
    ("Host with a word as port", request(host=b"Host: a:http"), 400),
    ("Host with two ports", request(host=b"Host: a:80:81"), 400),
    ("Host with a long port", request(host=b"Host: a:123456"), 400),
    ("Host with open bracket", request(host=b"Host: [::1"), 400),
    ("Host of 300 bytes", request(host=b"Host: " + b"a" * 300), 400),
    ("HTTP/1.0 with a bad Host", b"GET / HTTP/1.0\r\nHost: a/#@x\r\n\r\n", 400),
    # header lines
    ("obs-fold", request(b"X-A: a", b" b"), 400),
    ("obs-fold with tab", request(b"X-A: a", b"\tb"), 400),
    ("obs-fold of an empty value", request(b"X-A:", b" b"), 400),
    ("obs-fold before the first header", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    ("space before colon", request(b"X-A : a"), 400),
    ("tab before colon", request(b"X-A\t: a"), 400),
    ("space in a name", request(b"X A: a"), 400),
    ("no name", request(b": a"), 400),
    ("no colon", request(b"X-A"), 400),
    ("name outside ASCII", request(b"X-\xc3\xa9: a"), 400),
    ("value outside ASCII", request(b"X-A: caf\xc3\xa9"), 400),
    ("NUL in a value", request(b"X-A: a\0b"), 400),
    ("NUL in a name", request(b"X\0A: a"), 400),
    ("control character in a value", request(b"X-A: a\x01b"), 400),
    ("DEL in a value", request(b"X-A: a\x7fb"), 400),
    ("bare CR in a value", request(b"X-A: a\rb"), 400),
    ("bare CR as line end", request(b"X-A: a\rX-B: b"), 400),
    ("bare LF as line end", request(b"X-A: a\nX-B: b"), 400),
    ("bare LF everywhere", GET.replace(CRLF, b"\n"), 400),
    ("bare LF at the end of the head", b"GET / HTTP/1.1\r\n" + HOST + b"\r\n\n", 400),
    ("Authorization twice", request(b"Authorization: Bearer a", b"Authorization: Bearer b"), 400),
    ("Authorization twice, in two cases", request(b"authorization: Bearer a", b"AUTHORIZATION: Bearer a"), 400),
    ("x-api-key twice", request(b"X-Api-Key: a", b"x-api-key: a"), 400),
    ("api-key twice", request(b"Api-Key: a", b"Api-Key: b"), 400),
    # their size
    ("101 headers", request(*[b"A: b"] * 100), 431),
    ("500 headers", request(*[b"X-%d: b" % number for number in range(500)]), 431),
    ("50,000 headers", request(*[b"A: b"] * 50_000), 431),
    ("50,000 headers without an end", request(*[b"A: b"] * 50_000)[:-2], 431),
    ("one header of 33 KiB", request(b"X-A: " + b"a" * 33 * KIB), 431),
    ("one header of 200 kB", request(b"X-A: " + b"a" * 200_000), 431),
    ("one header of 20 MB", request(b"X-A: " + b"a" * 20_000_000), 431),
    ("a name of 40 KiB", request(b"A" * 40 * KIB + b": a"), 431),
    ("a name of 1 MiB without an end", request()[:-2] + b"A" * MIB, 431),
    ("a cookie of 1 MB", request(b"Cookie: " + b"a" * 1_000_000), 431),
    ("90 headers of 400 bytes", request(*[b"X-A: " + b"a" * 400] * 90), 431),
]

FRAMINGS: list[tuple[str, bytes, int]] = [
    ("CL.TE", request(b"Content-Length: 6", b"Transfer-Encoding: chunked") + END + b"G", 400),
    ("TE.CL", request(b"Transfer-Encoding: chunked", b"Content-Length: 3") + b"8\r\nSMUGGLED\r\n" + END, 400),
    ("two equal CL", request(b"Content-Length: 3", b"Content-Length: 3") + b"abc", 400),
    ("two different CL", request(b"Content-Length: 3", b"Content-Length: 0") + b"abc", 400),
    ("CL as a list", request(b"Content-Length: 3, 3") + b"abc", 400),
    ("negative CL", request(b"Content-Length: -1"), 400),
    ("signed CL", request(b"Content-Length: +3") + b"abc", 400),
    ("hexadecimal CL", request(b"Content-Length: 0x3") + b"abc", 400),
    ("CL with underscore", request(b"Content-Length: 1_0") + b"abcdefghij", 400),
    ("CL with space inside", request(b"Content-Length: 1 0") + b"abcdefghij", 400),
    ("fractional CL", request(b"Content-Length: 3.0") + b"abc", 400),
    ("empty CL", request(b"Content-Length:") + b"abc", 400),
    ("CL beyond 64 bits", request(b"Content-Length: 99999999999999999999"), 400),
    ("CL with space before colon", request(b"Content-Length : 3") + b"abc", 400),
    ("CL after vertical tab", request(b"Content-Length:\x0b3") + b"abc", 400),
    ("TE identity", request(b"Transfer-Encoding: identity") + b"abc", 400),
    ("TE gzip", request(b"Transfer-Encoding: gzip") + b"abc", 400),
    ("TE gzip, chunked", request(b"Transfer-Encoding: gzip, chunked") + END, 400),
    ("TE chunked, identity", request(b"Transfer-Encoding: chunked, identity") + END, 400),
    ("TE chunked, chunked", request(b"Transfer-Encoding: chunked, chunked") + END, 400),
    ("TE.TE", request(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x") + END, 400),
    ("TE.TE, other order", request(b"Transfer-Encoding: x", b"Transfer-Encoding: chunked") + END, 400),
    ("TE twice", request(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + END, 400),
    ("TE xchunked", request(b"Transfer-Encoding: xchunked") + END, 400),
    ("TE chunkedx", request(b"Transfer-Encoding: chunkedx") + END, 400),
    ("TE in quotes", request(b'Transfer-Encoding: "chunked"') + END, 400),
    ("TE after vertical tab", request(b"Transfer-Encoding:\x0bchunked") + END, 400),
    ("TE with parameter", request(b"Transfer-Encoding: chunked;q=1") + END, 400),
    ("empty TE", request(b"Transfer-Encoding:") + END, 400),
    ("TE with space before colon", request(b"Transfer-Encoding : chunked") + END, 400),
    ("TE in an obs-fold", request(b"Transfer-Encoding:", b" chunked") + END, 400),
    ("TE in HTTP/1.0", chunked(END).replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
]

CHUNKS: list[tuple[str, bytes, int]] = [
    ("bare LF after the size", chunked(b"3\nabc\r\n", END), 400),
    ("bare CR after the size", chunked(b"3\rabc\r\n", END), 400),
    ("bare LF after the data", chunked(b"3\r\nabc\n", END), 400),
    ("nothing after the data", chunked(b"3\r\nabc", END), 400),
    ("bare LF in an extension", chunked(b"3;a\nabc\r\n", END), 400),
    ("bare LF in a quoted extension", chunked(b'3;a="\n"\r\nabc\r\n', END), 400),
    ("space before the size", chunked(b" 3\r\nabc\r\n", END), 400),
    ("space after the size", chunked(b"3 \r\nabc\r\n", END), 400),
    ("0x before the size", chunked(b"0x3\r\nabc\r\n", END), 400),
    ("sign before the size", chunked(b"+3\r\nabc\r\n", END), 400),
    ("negative size", chunked(b"-3\r\nabc\r\n", END), 400),
    ("size with underscore", chunked(b"1_0\r\n" + b"a" * 16 + CRLF, END), 400),
    ("no size", chunked(b"\r\nabc\r\n", END), 400),
    ("size that is no number", chunked(b"xyz\r\nabc\r\n", END), 400),
    ("size beyond 64 bits", chunked(b"fffffffffffffffff\r\nabc"), 400),
    ("size smaller than the data", chunked(b"3\r\nabcdef\r\n", END), 400),
    ("bare LF after the last chunk", chunked(b"3\r\nabc\r\n0\r\n\n"), 400),
    ("Content-Length as trailer", chunked(b"0\r\nContent-Length: 5\r\n\r\n"), 400),
    ("Transfer-Encoding as trailer", chunked(b"0\r\nTransfer-Encoding: x\r\n\r\n"), 400),
    ("a bad trailer", chunked(b"0\r\nA : b\r\n\r\n"), 400),
    ("an extension of 1 MB", chunked(b"3;a=" + b"b" * 1_000_000 + b"\r\nabc\r\n", END), 400),
    ("a name of an extension of 1 MB", chunked(b"3;" + b"b" * 1_000_000 + b"\r\nabc\r\n", END), 400),
    ("4,000 chunks of one byte with long extensions", chunked(*[b"1;" + b"b" * 100 + b"\r\na\r\n"] * 4_000, END), 400),
    ("1 MB of zeros before a size", chunked(b"0" * 1_000_000 + b"3\r\nabc\r\n", END), 400),
    ("a trailer of 1 MB", chunked(b"3\r\nabc\r\n0\r\nA: " + b"b" * 1_000_000 + b"\r\n\r\n"), 400),
    ("50,000 trailers", chunked(b"3\r\nabc\r\n0\r\n" + b"A: b\r\n" * 50_000 + b"\r\n"), 400),
]

ATTACKS = HEADS + FRAMINGS + CHUNKS


def named(cases: list[tuple[str, bytes, int]]) -> Any:
    return pytest.mark.parametrize(("data", "status"), [pytest.param(*case[1:], id=case[0]) for case in cases])


@named(HEADS + FRAMINGS)
def test_a_bad_head_is_refused_before_the_application_sees_it(port: Port, data: bytes, status: int) -> None:
    seen, refused = len(port.echo.seen), len(port.server.refused)
    assert_refused(port.exchange(data), status)
    assert len(port.echo.seen) == seen
    assert len(port.server.refused) == refused + 1
    port.still_serves()


@named(CHUNKS)
def test_a_bad_chunk_ends_the_request_with_one_refusal(port: Port, data: bytes, status: int) -> None:
    refused = len(port.server.refused)
    assert_refused(port.exchange(data), status)
    assert len(port.server.refused) == refused + 1
    port.still_serves()


@named([case for case in ATTACKS if len(case[1]) < 300])
def test_the_verdict_does_not_depend_on_how_the_bytes_arrive(port: Port, data: bytes, status: int) -> None:
    with RawClient(port.server.port) as client:
        for index in range(len(data)):
            if not client.try_send(data[index : index + 1]):
                break
        assert_refused(client.answers(), status)


@named([case for case in ATTACKS if len(case[1]) < 2 * KIB])
def test_an_attack_behind_a_good_request_gets_no_second_answer_out_of_turn(
    port: Port, data: bytes, status: int
) -> None:
    """Whatever follows, the good request is answered first and once, and nothing of the attack is served as another."""
    answers = port.exchange(GOOD + data)
    assert answers[0].status == 200
    assert answers[0].json()["body"] == "good"
    assert [answer.status for answer in answers[1:]] in ([], [status])


GOOD_REQUESTS: list[tuple[str, bytes, dict[str, Any]]] = [
    ("GET", GET, {"method": "GET", "path": "/v1/x", "body": ""}),
    ("HTTP/1.0 without Host", b"GET /v1/x HTTP/1.0\r\n\r\n", {"path": "/v1/x"}),
    ("a body", sized(b"abc"), {"body": "abc"}),
    ("GET with a body", GET[:-2] + b"Content-Length: 3\r\n\r\nabc", {"method": "GET", "body": "abc"}),
    ("CL with spaces around", request(b"Content-Length:  3 ") + b"abc", {"body": "abc"}),
    ("chunks", chunked(b"3\r\nabc\r\n2\r\nde\r\n", END), {"body": "abcde"}),
    ("chunks, in capitals", chunked(b"A\r\n0123456789\r\n", END).replace(b"chunked", b"CHUNKED"), {"size": 10}),
    ("chunks of one byte", chunked(*[b"1\r\na\r\n"] * 30_000, END), {"size": 30_000}),
    ("chunk extensions", chunked(b'3;a=b;c="d"\r\nabc\r\n', END), {"body": "abc"}),
    ("empty lines before", b"\r\n\r\n" + GET, {"path": "/v1/x"}),
    ("two spaces in the request line", GET.replace(b" ", b"  ", 1), {"path": "/v1/x"}),
    ("URL of this host", request(target=b"http://localhost:8000/v1/x?y=1"), {"path": "/v1/x", "query": "y=1"}),
    ("URL of this host, in capitals", request(target=b"HTTP://LOCALHOST:8000/v1/x"), {"path": "/v1/x"}),
    ("URL without path", request(target=b"http://localhost:8000"), {"path": "/"}),
    ("URL without path, with query", request(target=b"http://localhost:8000?y=1"), {"path": "/", "query": "y=1"}),
    ("two slashes", request(target=b"//v1/x"), {"path": "//v1/x"}),
    ("model id in the path", request(target=b"/v1/models/a%2Fb:c@d"), {"path": "/v1/models/a/b:c@d"}),
    ("IPv6 Host", request(host=b"Host: [::1]:8000"), {"path": "/v1/x"}),
    ("service name as Host", request(host=b"Host: lora_gateway.svc-1"), {"path": "/v1/x"}),
    ("Host with tabs around", request(host=b"Host:\tlocalhost\t"), {"path": "/v1/x"}),
    ("99 headers", request(*[b"X-A: a"] * 98), {"path": "/v1/x"}),
    ("31 KiB of headers", request(*[b"X-A: " + b"a" * 1000] * 31), {"path": "/v1/x"}),
    ("target of 8,000 bytes", request(target=b"/" + b"a" * 7_999), {"path": "/" + "a" * 7_999}),
    ("an unknown expectation", sized(b"abc", b"Expect: cake"), {"body": "abc"}),
]


@pytest.mark.parametrize(("data", "expected"), [pytest.param(*case[1:], id=case[0]) for case in GOOD_REQUESTS])
def test_an_unusual_but_good_request_is_served(port: Port, data: bytes, expected: dict[str, Any]) -> None:
    refused = len(port.server.refused)
    with RawClient(port.server.port) as client:
        client.send(data)
        answer = client.answer()
    assert answer.status == 200
    assert expected.items() <= answer.json().items()
    assert len(port.server.refused) == refused


def test_the_documented_limits_are_the_defaults() -> None:
    assert EdgeLimits() == EdgeLimits(
        header_timeout=10,
        body_timeout=30,
        min_body_rate=1 * KIB,
        max_header_bytes=32 * KIB,
        max_headers=100,
        max_target_bytes=8 * KIB,
        max_body_bytes=64 * MIB,
        keep_alive=75,
        write_stall=30,
        max_connections=4096,
    )


def test_a_refusal_waits_for_nothing() -> None:
    """Not for what a bad request has promised to send, nor for the end of any time-out."""
    patient = EdgeLimits(header_timeout=9 * LATE, body_timeout=9 * LATE, keep_alive=9 * LATE, write_stall=9 * LATE)
    with served(Echo(), patient) as server:
        for _, data, _status in [case for case in ATTACKS if len(case[1]) < MIB][::5]:
            with RawClient(server.port, timeout=LATE) as client:
                client.try_send(data)
                assert client.answers()  # and closed


def test_a_refusal_repeats_nothing_of_what_was_sent(port: Port) -> None:
    for _, data, _status in ATTACKS:
        if len(data) < 2 * KIB:
            answers = port.exchange(
                data.replace(b"/v1/x", b"/CANARY").replace(b"abc", b"CAN").replace(b"X-A: ", b"CAN: ")
            )
            assert not [answer for answer in answers if b"CAN" in answer.body]


# Upgrade, Expect, trailers


@pytest.mark.parametrize("wish", [b"h2c", b"websocket", b"TLS/1.2", b"chocolate"])
@pytest.mark.parametrize("body", [sized(b"abc"), chunked(b"3\r\nabc\r\n", END)], ids=["sized", "chunked"])
def test_a_wish_for_another_protocol_is_ignored_and_the_body_kept(port: Port, wish: bytes, body: bytes) -> None:
    """Java's client asks for h2c with every request; llhttp would read its body as the next request."""
    lines = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + wish + b"\r\nHTTP2-Settings: AAMAAABk\r\n"
    head, _, rest = body.partition(CRLF)
    with RawClient(port.server.port) as client:
        for _ in range(2):
            client.send(head + CRLF + lines + rest)
            answer = client.answer().json()
            assert answer["body"] == "abc"
            assert not {"upgrade", "connection", "http2-settings"} & {name for name, _ in answer["headers"]}


def test_a_request_hidden_in_the_body_of_an_upgrade_is_not_served(port: Port) -> None:
    seen = len(port.echo.seen)
    with RawClient(port.server.port) as client:
        client.send(sized(request(target=b"/admin"), b"Connection: upgrade", b"Upgrade: websocket", b"X-A: b"))
        assert client.answer().json()["path"] == "/v1/x"
    port.still_serves()
    assert [request["path"] for request in port.echo.seen[seen:]] == ["/v1/x", "/v1/x"]


def test_a_client_that_waits_for_leave_to_send_gets_it(port: Port) -> None:
    with RawClient(port.server.port) as client:
        client.send(request(b"Content-Length: 3", b"Expect: 100-Continue"))
        assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"abc")
        assert client.answer().json()["body"] == "abc"


def test_a_client_that_waits_for_leave_to_send_too_much_is_refused_instead(port: Port) -> None:
    assert_refused(port.exchange(request(b"Content-Length: 99999999", b"Expect: 100-continue")), 413)


def test_trailers_never_become_headers(port: Port) -> None:
    with RawClient(port.server.port) as client:
        client.send(chunked(b"3\r\nabc\r\n0\r\nAuthorization: Bearer stolen\r\nX-Api-Key: stolen\r\n\r\n") + GET)
        for body in ("abc", ""):
            answer = client.answer().json()
            assert answer["body"] == body
            assert "stolen" not in str(answer["headers"])


# Pipelining


def test_pipelined_requests_are_answered_in_order_each_once(port: Port) -> None:
    data = b"".join(
        sized(b"%d" % number) if number % 2 else chunked(b"1\r\n%d\r\n" % number, END) for number in range(10)
    )
    for cut in (1, 7, 100, len(data)):
        with RawClient(port.server.port) as client:
            for start in range(0, len(data), cut):
                client.send(data[start : start + cut])
            assert [client.answer().json()["body"] for _ in range(10)] == [str(number) for number in range(10)]


def test_a_body_shorter_than_a_request_inside_it_does_not_hide_one(port: Port) -> None:
    """What a proxy would call the second request, we call the second request too."""
    seen = len(port.echo.seen)
    with RawClient(port.server.port) as client:
        client.send(request(b"Content-Length: 4") + b"good" + request(method=b"GET", target=b"/second"))
        assert [client.answer().json()["path"] for _ in range(2)] == ["/v1/x", "/second"]
    assert len(port.echo.seen) == seen + 2


def test_too_many_requests_at_once_close_the_connection_after_the_first_answers(port: Port) -> None:
    answers = port.exchange(GET * 1_000)
    assert 1 <= len(answers) <= 16
    assert {answer.status for answer in answers} == {200}
    port.still_serves()


def test_nothing_after_connection_close_is_served(port: Port) -> None:
    seen = len(port.echo.seen)
    assert [answer.status for answer in port.exchange(request(b"Connection: close") + GET)] == [200]
    port.still_serves()
    assert len(port.echo.seen) == seen + 2


# Bodies


@pytest.fixture(scope="module")
def narrow() -> Iterator[Port]:
    """A server that takes bodies of 1 MiB."""
    echo = Echo()
    with served(echo, EdgeLimits(max_body_bytes=MIB, keep_alive=3)) as server:
        yield Port(server, echo)


def test_a_body_at_the_limit_passes(narrow: Port) -> None:
    for data in (sized(b"a" * MIB), chunked(b"%x\r\n" % MIB, b"a" * MIB, CRLF, END)):
        with RawClient(narrow.server.port) as client:
            client.send(data)
            assert client.answer().json()["size"] == MIB


def test_a_body_declared_too_large_is_refused_unread(narrow: Port) -> None:
    seen = len(narrow.echo.seen)
    assert_refused(narrow.exchange(request(b"Content-Length: %d" % (MIB + 1))), 413)
    assert len(narrow.echo.seen) == seen


def test_a_client_that_sends_a_body_declared_too_large_still_reads_the_refusal(narrow: Port) -> None:
    with RawClient(narrow.server.port, send_buffer=8 * KIB) as client:
        # Blindly, as many do, and without an error.
        client.send(request(b"Content-Length: %d" % (MIB + 1)) + b"a" * 900 * KIB)
        assert_refused(client.answers(), 413)
        assert not client.reset


@pytest.mark.parametrize("chunk", [100, 64 * KIB, 4 * MIB])
def test_a_chunked_body_is_refused_once_it_is_too_large(narrow: Port, chunk: int) -> None:
    """After the limit and at most 64 KiB more were read."""
    one = b"%x\r\n" % chunk + b"a" * chunk + CRLF
    with RawClient(narrow.server.port) as client:
        client.send(chunked())
        limit, sent = MIB * len(one) // chunk, 0
        data = one * (4 * MIB // chunk)
        while sent < limit + 64 * KIB:
            sent += client.try_send(data[sent : sent + 16 * KIB])
        assert_refused(client.answers(), 413)


def test_bytes_beyond_the_declared_length_are_not_part_of_the_body(narrow: Port) -> None:
    answers = narrow.exchange(request(b"Content-Length: 3") + b"abcdefgh")
    assert answers[0].json()["body"] == "abc"
    assert [answer.status for answer in answers[1:]] in ([], [400])


def test_an_endless_body_costs_no_memory(narrow: Port) -> None:
    process = psutil.Process()
    narrow.still_serves()
    before = process.memory_info().rss
    piece = b"10000\r\n" + b"a" * 65536 + CRLF
    for _ in range(10):
        with RawClient(narrow.server.port) as client:
            client.send(chunked())
            for _ in range(64):
                client.try_send(piece)
            assert client.answers()[0].status == 413
    assert process.memory_info().rss - before < 20 * MIB


# Time


@pytest.fixture(scope="module")
def hasty() -> Iterator[Port]:
    """A server with short limits, for those who exceed them; each is far from the others, so that a test knows which
    one it met."""
    echo = Echo()
    with served(echo, EdgeLimits(header_timeout=1.0, body_timeout=1.5, keep_alive=2.0)) as server:
        yield Port(server, echo)


def test_a_silent_connection_is_closed_without_a_word(hasty: Port) -> None:
    began = time.monotonic()
    with RawClient(hasty.server.port) as client:
        assert client.answers() == []
    assert near(time.monotonic() - began, 1.0)
    assert hasty.server.refused[-1] == "silent_connection"


@pytest.mark.parametrize("data", [GET[:1], GET[:-2], GET[:-1], request(b"X-A: " + b"a" * 20_000)[:-4]])
def test_half_a_head_is_closed(hasty: Port, data: bytes) -> None:
    with RawClient(hasty.server.port) as client:
        client.send(data)
        assert_refused(client.answers(), 408)
    assert hasty.server.refused[-1] == "header_timeout"


@pytest.mark.parametrize("first", [b"", GOOD], ids=["first request", "second request"])
@pytest.mark.parametrize("byte", [b"a", CRLF], ids=["header", "empty lines"])
def test_a_head_that_trickles_is_closed_all_the_same(hasty: Port, first: bytes, byte: bytes) -> None:
    with RawClient(hasty.server.port) as client:
        if first:
            client.send(first)
            client.answer()
        if byte == b"a":
            client.send(GET[:-2] + b"X-A: ")
        client.set_timeout(0.02)
        began = time.monotonic()
        while (answer := client.try_receive()) is None:
            client.try_send(byte)
            assert time.monotonic() - began < LATE
        assert answer.startswith(b"HTTP/1.1 408 ") if byte == b"a" else answer == b""


def test_an_idle_connection_is_kept_for_its_time_and_then_closed(hasty: Port) -> None:
    began = time.monotonic()
    with RawClient(hasty.server.port) as client:
        client.send(GOOD)
        assert len(client.answers()) == 1  # and closed
    assert near(time.monotonic() - began, 2.0)


@pytest.mark.parametrize("framing", [b"Content-Length: 5000", b"Transfer-Encoding: chunked"])
def test_a_body_that_never_comes_is_closed(hasty: Port, framing: bytes) -> None:
    with RawClient(hasty.server.port) as client:
        client.send(request(framing))
        assert_refused(client.answers(), 408)
    assert hasty.server.refused[-1] == "body_timeout"


def test_a_body_below_the_least_rate_is_closed(hasty: Port) -> None:
    """R-U-D-Y: a byte now and then."""
    with RawClient(hasty.server.port, timeout=0.02) as client:
        client.send(request(b"Content-Length: 500000"))
        while (answer := client.try_receive()) is None:
            client.try_send(b"a")
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_slow_body_above_the_least_rate_is_taken(hasty: Port) -> None:
    with RawClient(hasty.server.port, timeout=0.05) as client:
        client.send(request(b"Content-Length: 65000"))
        for _ in range(64):  # 3.2 s at 20 KiB/s, which is more than two windows
            client.send(b"a" * 1000)
            with pytest.raises(TimeoutError):
                client.receive()
        client.send(b"a" * 1000)
        client.set_timeout(10)
        assert client.answer().json()["size"] == 65_000


def test_a_good_request_is_served_in_the_midst_of_attacks(hasty: Port) -> None:
    """500 connections that say nothing, half a head or half a body: good clients don't notice, all bad ones go."""
    bad = [RawClient(hasty.server.port) for _ in range(500)]
    openings = (b"", GET[:-2], request(b"Content-Length: 1000") + b"a")
    for index, client in enumerate(bad):
        client.try_send(openings[index % 3])  # the server may be done with it already
        if index % 50 == 0:
            hasty.still_serves()
    for client in bad:
        client.read_rest()
        client.leave()
    hasty.still_serves()


def test_connections_beyond_the_limit_are_turned_away() -> None:
    with served(Echo(), EdgeLimits(max_connections=3)) as server:
        clients = [RawClient(server.port) for _ in range(3)]
        for client in clients:
            client.send(GOOD)
            assert client.answer().status == 200
        with RawClient(server.port) as fourth:
            answer = fourth.answers()[0]
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "too_many_connections"
        clients.pop().leave()
        until = time.monotonic() + LATE
        while time.monotonic() < until:
            with RawClient(server.port) as client:
                client.try_send(GOOD)
                if client.answer().status == 200:
                    break
        else:
            pytest.fail("the freed place was not given to anyone")
        for client in clients:
            client.leave()
