"""How an object in an S3 bucket is asked for; pure.

Signature Version 4 (https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html), with the
credentials, region and endpoint from the environment variables that all AWS tools share. Without credentials the
request is not signed: public buckets answer it.
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from adapters.sources.web import Ask

_ALGORITHM = "AWS4-HMAC-SHA256"
_NO_BODY = hashlib.sha256(b"").hexdigest()


def ask(url: str, environ: Mapping[str, str], now: datetime, region: str | None = None) -> Ask:
    """The request for s3://BUCKET/KEY; `region` where the bucket turned out to be in another one than was said."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    region = region or region_of(environ)
    target = _place(bucket, environ, region) + "/" + quote(key, safe="/-_.~")
    identity, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if not identity or not secret:
        return Ask(target)
    stamp = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    headers = {"x-amz-content-sha256": _NO_BODY, "x-amz-date": stamp}
    if token := environ.get("AWS_SESSION_TOKEN"):
        headers["x-amz-security-token"] = token
    return Ask(target, {**headers, "authorization": authorization(target, headers, identity, secret, region)})


def region_of(environ: Mapping[str, str]) -> str:
    """The region that the environment names."""
    return environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def authorization(url: str, headers: Mapping[str, str], identity: str, secret: str, region: str) -> str:
    """The value of the header `authorization` for a GET with these headers, x-amz-date among them, and no body."""
    parts = urlsplit(url)
    stamp = headers["x-amz-date"]
    signed = {"host": parts.netloc, **headers}
    names = ";".join(sorted(signed))
    lines = "".join(f"{name}:{signed[name].strip()}\n" for name in sorted(signed))
    request = f"GET\n{parts.path}\n{parts.query}\n{lines}\n{names}\n{_NO_BODY}"
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{secret}".encode()
    for step in (stamp[:8], region, "s3", "aws4_request"):
        key = hmac.digest(key, step.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    return f"{_ALGORITHM} Credential={identity}/{scope},SignedHeaders={names},Signature={signature}"


def _place(bucket: str, environ: Mapping[str, str], region: str) -> str:
    """Where the bucket answers. A dot in its name would not match the certificate of *.s3.…"""
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        return f"{endpoint.rstrip('/')}/{bucket}"
    if "." in bucket:
        return f"https://s3.{region}.amazonaws.com/{bucket}"
    return f"https://{bucket}.s3.{region}.amazonaws.com"
