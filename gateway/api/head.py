"""Which request heads are served: pure rules over what the parser read.

The rules are those of RFC 9112, read strictly (3.2 target and Host, 5 header fields, 6 framing).  A refusal says what
is wrong and never repeats what the client sent.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from gateway.api.routes import RouteTable
from gateway.domain.errors import InvalidRequest, Refusal, TooLarge

#: Of two of these, two readers may each believe another one.
_ONCE = frozenset(
    b"host content-length transfer-encoding authorization x-api-key api-key x-openwebui-user-jwt x-openwebui-user-id "
    b"x-openwebui-user-email x-openwebui-user-role x-openwebui-groups".split()
)
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?]+)(/[^?]*)?(\?.*)?", re.IGNORECASE)
_UPGRADE = frozenset({b"upgrade", b"connection", b"http2-settings"})
_ROUTES = RouteTable()

Headers = Collection[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """What one client may cost.  Times in seconds, sizes in bytes, rates in bytes a second.

    `header_timeout` runs from the connect, or on a kept connection from a head's first bytes, to the head's end.  A
    body must bring `min_body_rate` in each `body_timeout`, which ends R-U-D-Y and leaves slow links alone;
    `write_stall` asks the same rate of a client that is behind in reading its answer.  `keep_alive` should exceed the
    idle time of a load balancer in front.  `max_upload_bytes` is for what is written to the disk as it comes.
    """

    header_timeout: float = 10.0
    body_timeout: float = 30.0
    min_body_rate: int = 1024
    max_header_bytes: int = 32 * 1024
    max_headers: int = 100
    max_target_bytes: int = 8 * 1024
    max_body_bytes: int = 64 * 1024 * 1024
    max_upload_bytes: int = 4096 * 1024 * 1024
    keep_alive: int = 75
    write_stall: float = 30.0
    max_connections: int = 4096


def checked_target(method: bytes, version: str, target: bytes, headers: Headers, limits: EdgeLimits) -> bytes:
    """The request target in origin form (`/path?query`), if the head is one we serve; else raises Refusal.

    `headers` have lower-case names, as uvicorn keeps them.
    """
    if version not in ("1.1", "1.0"):
        raise InvalidRequest("Only HTTP/1.1 and HTTP/1.0 are spoken here.", code="unsupported_http_version")
    if method == b"CONNECT":
        raise InvalidRequest("This is no proxy: CONNECT is not served.", code="unsupported_method")
    if len(target) > limits.max_target_bytes:
        raise target_too_long(limits)
    fields = dict(headers)
    values: Iterable[bytes] = fields.values()
    if len(fields) != len(headers):
        _check_repeated(headers)
        values = [value for _, value in headers]
    if not b"".join(values).isascii():
        raise InvalidRequest("A header value holds bytes outside ASCII; percent-encode it.", code="invalid_header")
    host = fields.get(b"host")
    if host is None:
        if version == "1.1":
            raise InvalidRequest("The Host header is missing.", code="invalid_host")
    elif _HOST.fullmatch(host := host.strip(b" \t")) is None:
        raise InvalidRequest("The Host header is not a host with an optional port.", code="invalid_host")
    path = _origin_form(target, host)
    size = _body_size(version, fields)
    if size > limits.max_body_bytes and size > (limit := body_limit(method, path, limits)):
        raise body_too_large(limit)
    return path


def _check_repeated(headers: Headers) -> None:
    seen = set()
    for name, _ in headers:
        if name in seen:
            raise InvalidRequest(f"The header {name.decode()} may be sent only once.", code="duplicate_header")
        if name in _ONCE:
            seen.add(name)


def _body_size(version: str, fields: dict[bytes, bytes]) -> int:
    """The size that the body is said to have; 0 where it comes in chunks.  Raises Refusal for two ways to read it."""
    encoding = fields.get(b"transfer-encoding")
    length = fields.get(b"content-length")
    if encoding is not None:
        # HTTP/1.0 knows no chunks: a proxy that reads it so would see the body end elsewhere (RFC 9112, 6.1).
        if length is not None or version == "1.0" or encoding.strip(b" \t").lower() != b"chunked":
            raise InvalidRequest(
                "Transfer-Encoding must be 'chunked', in HTTP/1.1, and without Content-Length.", code="invalid_framing"
            )
    elif length is not None:
        if not (digits := length.strip(b" \t")).isdigit():
            raise InvalidRequest("Content-Length is not a number.", code="invalid_framing")
        return int(digits)
    return 0


def _origin_form(target: bytes, host: bytes | None) -> bytes:
    if b"#" in target:
        raise InvalidRequest("The request target may not hold a fragment.", code="invalid_target")
    if target.startswith(b"/"):
        return target
    # The authority of an absolute target outranks Host, so that a target naming another host would be read otherwise
    # by a proxy in front: the two must agree.
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or host is None or absolute[1].lower() != host.lower():
        raise InvalidRequest("The request target must be a path, or a URL of the host in Host.", code="invalid_target")
    return (absolute[2] or b"/") + (absolute[3] or b"")


def target_too_long(limits: EdgeLimits) -> Refusal:
    return Refusal(f"The request target exceeds {limits.max_target_bytes} bytes.", status=414, code="uri_too_long")


def headers_too_large(limits: EdgeLimits) -> Refusal:
    return Refusal(
        f"The headers exceed {limits.max_header_bytes} bytes or {limits.max_headers} lines.",
        status=431,
        code="headers_too_large",
    )


def takes_upload(method: bytes, target: bytes) -> bool:
    """Whether the body of this request is one that is written to the disk as it comes."""
    path = unquote_to_bytes(target.partition(b"?")[0]).decode("utf-8", "replace")
    return _ROUTES.takes_upload(method.decode("ascii"), path)


def body_limit(method: bytes, target: bytes, limits: EdgeLimits) -> int:
    """Bytes that the body of this request may have."""
    return limits.max_upload_bytes if takes_upload(method, target) else limits.max_body_bytes


def body_too_large(limit: int) -> Refusal:
    return TooLarge(f"The body exceeds {limit} bytes.")


def head_size(target: bytes, headers: Headers) -> int:
    """Bytes of a head on the wire, but for the method, the version and spaces around values."""
    return len(target) + sum(len(name) + len(value) + 4 for name, value in headers)


def without_upgrade(method: bytes, version: str, target: bytes, headers: Headers) -> bytes:
    """The head as it goes over the wire, without the wish for another protocol."""
    lines = [b"%s %s HTTP/%s" % (method, target, version.encode())]
    for name, value in headers:
        if name not in _UPGRADE:
            lines.append(b"%s: %s" % (name, value))
        elif name == b"connection" and b"close" in value.lower():
            lines.append(b"connection: close")
    return b"\r\n".join([*lines, b"", b""])
