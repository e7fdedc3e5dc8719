"""The rules of a request head, for any head that a parser could hand over."""

from __future__ import annotations

from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.head import EdgeLimits, checked_target, head_size, without_upgrade
from gateway.domain.errors import Refusal

LIMITS = EdgeLimits(max_body_bytes=1000, max_target_bytes=100)
HOST = (b"host", b"a")

# Bytes that mean something to some parser, mixed with any other.
MEANT = st.lists(st.one_of(st.sampled_from(list(b"/?#@:\\%[]. ,;=aA1_\t\0\xff")), st.integers(0, 255))).map(bytes)
NAMES = st.sampled_from([b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key", b"x-a"])
HEADERS = st.lists(st.tuples(NAMES, st.one_of(MEANT, st.sampled_from([b"chunked", b"5", b"a", b"a:80"]))), max_size=6)


@given(
    st.sampled_from([b"GET", b"POST", b"CONNECT", b"TRACE", b"PLAY"]),
    st.sampled_from(["0.9", "1.0", "1.1", "2.0"]),
    st.one_of(MEANT, st.builds(bytes.__add__, st.just(b"http://a"), MEANT)),
    HEADERS,
)
def test_a_head_is_refused_or_safe(method: bytes, version: str, target: bytes, headers: list[Any]) -> None:
    """Never another error; and what passes is a path, one credential of a kind, one framing, one plain host."""
    try:
        path = checked_target(method, version, target, headers, LIMITS)
    except Refusal:
        return
    assert path.startswith(b"/")
    assert b"#" not in path
    names = [name for name, _ in headers if name != b"x-a"]
    assert len(names) == len(set(names))
    fields = dict(headers)
    assert version == "1.0" or not set(b"/?#@\\%, \0") & set(fields[b"host"].strip(b" \t"))
    assert not {b"content-length", b"transfer-encoding"} <= set(fields)
    assert int(fields.get(b"content-length", 0)) <= LIMITS.max_body_bytes


@pytest.mark.parametrize(
    ("size", "limit_met"),
    [(b"1000", False), (b"0001000", False), (b" 1000\t", False), (b"1001", True), (b"9" * 19, True)],
)
def test_the_declared_size_is_held_to_the_limit(size: bytes, limit_met: bool) -> None:
    headers = [HOST, (b"content-length", size)]
    if limit_met:
        with pytest.raises(Refusal) as refusal:
            checked_target(b"POST", "1.1", b"/", headers, LIMITS)
        assert refusal.value.status == 413
    else:
        assert checked_target(b"POST", "1.1", b"/", headers, LIMITS) == b"/"


def test_two_kinds_of_credential_are_for_authentication_to_judge() -> None:
    headers = [HOST, (b"authorization", b"Bearer a"), (b"x-api-key", b"b")]
    assert checked_target(b"GET", "1.1", b"/", headers, LIMITS) == b"/"


def test_the_size_of_a_head_is_that_on_the_wire() -> None:
    headers = [HOST, (b"x-a", b"bcd")]
    wire = b"/path" + b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    assert head_size(b"/path", headers) == len(wire)


@pytest.mark.parametrize(
    ("connection", "kept"),
    [(b"Upgrade", None), (b"Upgrade, HTTP2-Settings", None), (b"upgrade, Close", b"close"), (b"close", b"close")],
)
def test_a_head_without_its_upgrade_says_all_else(connection: bytes, kept: bytes | None) -> None:
    class Seen:
        def __init__(self) -> None:
            self.headers: dict[bytes, bytes] = {}
            self.url = b""

        def on_url(self, url: bytes) -> None:
            self.url += url

        def on_header(self, name: bytes, value: bytes) -> None:
            self.headers[name] = value

    headers = [HOST, (b"connection", connection), (b"upgrade", b"h2c"), (b"http2-settings", b"x"), (b"x-a", b"b")]
    seen = Seen()
    parser = httptools.HttpRequestParser(seen)
    parser.feed_data(without_upgrade(b"PATCH", "1.1", b"/a?b", headers))
    assert (parser.get_method(), parser.get_http_version(), seen.url) == (b"PATCH", "1.1", b"/a?b")
    assert seen.headers == {b"host": b"a", b"x-a": b"b"} | ({b"connection": kept} if kept else {})
    assert not parser.should_upgrade()
