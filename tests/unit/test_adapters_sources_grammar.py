"""How people write where an adapter comes from."""

from pathlib import Path

import pytest

from adapters.job import Host, Job, Limits, as_line, parse
from adapters.sources.source import (
    ArchiveSource,
    FolderSource,
    HubSource,
    Source,
    SourceError,
    UrlSource,
    as_job,
    from_job,
    parse_source,
)

DIGEST = "0123456789abcdef" * 4
COMMIT = "a" * 40


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://org/bot", HubSource("hf", "org/bot")),
        ("hf://org/bot/", HubSource("hf", "org/bot")),
        ("hf://org/bot@v1.0", HubSource("hf", "org/bot", "v1.0")),
        (f"hf://org/bot@{COMMIT}", HubSource("hf", "org/bot", COMMIT)),
        ("hf://org/bot@refs%2Fpr%2F1", HubSource("hf", "org/bot", "refs/pr/1")),
        ("hf://org/bot/adapters/fr", HubSource("hf", "org/bot", None, "adapters/fr")),
        ("hf://org/bot@main/checkpoint-500", HubSource("hf", "org/bot", "main", "checkpoint-500")),
        ("modelscope://org/bot@master", HubSource("modelscope", "org/bot", "master")),
        (f"https://host/bot.tar#sha256={DIGEST}", UrlSource("https://host/bot.tar", DIGEST)),
        (f"https://host:8443/a/b.zip?x=1#sha256={DIGEST.upper()}", UrlSource("https://host:8443/a/b.zip?x=1", DIGEST)),
        (f"s3://my-bucket/some/key.tar.gz#sha256={DIGEST}", UrlSource("s3://my-bucket/some/key.tar.gz", DIGEST)),
    ],
)
def test_what_people_write_is_understood_and_written_the_same(text: str, source: Source) -> None:
    assert parse_source(text) == source
    assert from_job(as_job(source)) == source
    if "?" not in text:
        assert parse_source(str(source)) == source


@pytest.mark.parametrize("beside", [DIGEST, DIGEST.upper(), f"sha256:{DIGEST}"])
def test_a_digest_may_be_given_beside_the_source(beside: str) -> None:
    assert parse_source("https://host/bot.tar", beside) == UrlSource("https://host/bot.tar", DIGEST)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no source"),
        ("bot", "is no source"),
        ("/srv/adapters/bot", "packed and uploaded"),
        ("adapters.d/bot", "packed and uploaded"),
        ("file:///etc/passwd", "is no source"),
        ("ftp://host/bot.tar", "is no source"),
        ("HF://org/bot", "is no source"),
        ("hf://bot", "names no repository"),
        ("hf:///bot", "names no repository"),
        ("hf://org/", "names no repository"),
        ("hf://../bot", "names no repository"),
        ("hf://org/..", "names no repository"),
        ("hf://org/a..b", "names no repository"),
        ("hf://-org/bot", "names no repository"),
        ("hf://org/bot#main", "names no repository"),
        ("hf://org/b%2ft", "names no repository"),
        (f"hf://org/{'b' * 97}", "names no repository"),
        ("hf://org/bot@", "is no revision"),
        ("hf://org/bot@../../x", "is no revision"),
        ("hf://org/bot@a%2F..%2Fb", "is no revision"),
        ("hf://org/bot@-x", "is no revision"),
        ("hf://org/bot@%00", "is no revision"),
        ("hf://org/bot/../../x", "no folder in a repository"),
        ("hf://org/bot/a//b", "no folder in a repository"),
        ("hf://org/bot/.git", "no folder in a repository"),
        ("hf://org/bot main", "without spaces"),
        ("hf://org/bot\n", "without spaces"),
        ("hf://org/bot\x1b[2J", "without spaces"),
        ("x" * 5000, "without spaces"),
        (f"http://host/bot.tar#sha256={DIGEST}", "use https"),
        ("https://host/bot.tar", "SHA-256 of the archive is needed"),
        ("https://host/bot.tar#sha256=12", "SHA-256 of the archive is needed"),
        ("https://host/bot.tar#md5=12", "is no digest"),
        (f"https://host/#sha256={DIGEST}", "names no archive"),
        (f"https:///bot.tar#sha256={DIGEST}", "names no archive"),
        (f"https://host:99999/bot.tar#sha256={DIGEST}", "is no URL"),
        (f"https://[host/bot.tar#sha256={DIGEST}", "is no URL"),
        ("s3://bucket/key", "SHA-256 of the archive is needed"),
        (f"s3://bucket#sha256={DIGEST}", "names no archive"),
        (f"s3://Bucket/key#sha256={DIGEST}", "no object in a bucket"),
        (f"s3://bucket/key?versionId=1#sha256={DIGEST}", "no object in a bucket"),
    ],
)
def test_what_is_no_source_is_refused_with_how_to_write_one(text: str, words: str) -> None:
    with pytest.raises(SourceError, match=words) as error:
        parse_source(text)
    assert str(error.value).isprintable()


def test_two_digests_that_differ_are_refused() -> None:
    with pytest.raises(SourceError, match="not the one"):
        parse_source(f"https://host/bot.tar#sha256={DIGEST}", "f" * 64)


def test_a_digest_beside_a_repository_is_refused() -> None:
    with pytest.raises(SourceError, match="name a commit"):
        parse_source("hf://org/bot", DIGEST)


def test_a_password_in_a_source_is_refused_and_not_repeated() -> None:
    with pytest.raises(SourceError, match="holds no user and password") as error:
        parse_source(f"https://me:hunter2@host/bot.tar#sha256={DIGEST}")
    assert "hunter2" not in str(error.value)


def test_a_signature_in_a_url_is_for_nobody_to_see() -> None:
    source = parse_source(f"https://host/bot.tar?X-Amz-Signature=secret#sha256={DIGEST}")
    assert isinstance(source, UrlSource)
    assert "secret" in source.url
    assert "secret" not in str(source)


@pytest.mark.parametrize(
    "source",
    [
        FolderSource(Path("/srv/bot")),
        ArchiveSource(Path("/tmp/x.tar")),
        HubSource("hf", "org/bot", "a/b", "sub/folder"),
    ],
)
def test_a_job_is_handed_over_whole(source: Source) -> None:
    job = Job(Path("/store"), source, (Host("/base", 16), Host(None, None)), Limits(1, 2.5, 3))
    line = as_line(job)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse(line) == job


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b"nonsense",
        b'{"store": "/s", "source": {"kind": "nfs"}, "hosts": [], "limits": {"bytes": 1, "seconds": 1, "memory": 1}}',
        b'{"store": "/s", "source": {"kind": "hf", "repo": "../x"}, "hosts": [],'
        b' "limits": {"bytes": 1, "seconds": 1, "memory": 1}}',
        b'{"store": "/s", "source": {"kind": "folder", "path": "/x"}, "hosts": [{"base": 1, "max_lora_rank": 1}],'
        b' "limits": {"bytes": 1, "seconds": 1, "memory": 1}}',
        b'{"store": "/s", "source": {"kind": "folder", "path": "/x"}, "hosts": [], "limits": {"bytes": null}}',
    ],
)
def test_what_is_no_job_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(line)
