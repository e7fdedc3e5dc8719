"""Adapters on hubs, behind URLs and in buckets: what is asked for, what comes, and what people are told."""

import hashlib
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from adapters import AdapterStore, Code, RefusedError, StoredAdapter
from adapters.sources import s3
from adapters.sources.fetching import FetchError
from adapters.sources.remote import fetched
from adapters.sources.source import HubSource, UrlSource, parse_source
from tests.fakes.archives import tar
from tests.fakes.fake_hub import FakeHub, certificate, fake_hub

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = {CONFIG: b'{"r": 8}', WEIGHTS: bytes(range(256)) * 3000}
BESIDE = {"tokenizer_config.json": b"{}", "README.md": b"#", "training_args.bin": pickle.dumps(Path("/"))}
LIMIT = 1 << 30
TOKEN = "hf_secret-token"
OWNER = ("AKIAEXAMPLE", "s3cret-key")


@dataclass
class Told:
    """What an import tells on the way."""

    done: list[tuple[int, int | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __call__(self, done: int, total: int | None) -> None:
        self.done.append((done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def server() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        hub.repository("org/bot", {**FILES, **BESIDE})
        yield hub


@pytest.fixture(params=["hf", "modelscope"])
def hub(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def environ(server: FakeHub, **more: str) -> Mapping[str, str]:
    url = server.url
    return {"HF_ENDPOINT": url, "MODELSCOPE_ENDPOINT": url, "AWS_ENDPOINT_URL": url, **more}


def bring(
    root: Path,
    server: FakeHub,
    source: str | UrlSource,
    told: Told | None = None,
    limit: int = LIMIT,
    **variables: str,
) -> tuple[str, StoredAdapter]:
    """What an import does, without the judging; the resolved source and the version."""
    parsed = parse_source(source) if isinstance(source, str) else source
    store = AdapterStore.open(root / "store")
    with fetched(parsed, store.root / "parts", limit, environ(server, **variables), told or Told()) as found:
        return found.source, store.take(found.fill)


def content(stored: StoredAdapter) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in stored.path.iterdir()}


def parts(root: Path) -> list[str]:
    return [path.name for path in (root / "store" / "parts").glob("*/*")]


def test_a_repository_is_fetched_by_its_commit_and_only_the_adapter_of_it(
    hub: str, server: FakeHub, tmp_path: Path
) -> None:
    told = Told()
    source, stored = bring(tmp_path, server, f"{hub}://org/bot", told)
    assert source == f"{hub}://org/bot@{server.commit}"
    assert content(stored) == FILES
    total = sum(map(len, FILES.values())) + len(BESIDE["tokenizer_config.json"])
    assert told.done[-1] == (total, total)
    assert told.done == sorted(told.done)
    asked = " ".join(seen.path for seen in server.seen)
    assert "training_args.bin" not in asked
    assert "README.md" not in asked
    assert all(server.commit in seen.path for seen in server.seen[1:]), "the branch is asked for its commit only"
    assert parts(tmp_path) == []


@pytest.mark.parametrize("revision", ["main", "v1", "feature/x", "COMMIT"])
def test_a_revision_is_resolved_to_its_commit(hub: str, revision: str, server: FakeHub, tmp_path: Path) -> None:
    asked = HubSource("hf", "org/bot", server.commit if revision == "COMMIT" else revision)
    source, _ = bring(tmp_path, server, str(replace(asked, hub=hub)))
    assert source == f"{hub}://org/bot@{server.commit}"


def test_a_folder_of_a_repository_may_be_named(hub: str, server: FakeHub, tmp_path: Path) -> None:
    server.repository("org/many", {f"fr/v2/{name}": data for name, data in FILES.items()} | {CONFIG: b"{}"})
    source, stored = bring(tmp_path, server, f"{hub}://org/many/fr/v2")
    assert source == f"{hub}://org/many@{server.commit}/fr/v2"
    assert content(stored) == FILES


def test_without_an_adapter_at_the_top_the_newest_checkpoint_is_taken_and_named(
    hub: str, server: FakeHub, tmp_path: Path
) -> None:
    checkpoints = {f"checkpoint-9/{name}": b"{}" for name in FILES}
    checkpoints |= {f"checkpoint-10/{name}": data for name, data in FILES.items()}
    server.repository("org/run", {**checkpoints, "checkpoint-11/optimizer.pt": b"", "README.md": b"#"})
    told = Told()
    source, stored = bring(tmp_path, server, f"{hub}://org/run", told)
    assert source == f"{hub}://org/run@{server.commit}/checkpoint-10"
    assert content(stored) == FILES
    assert told.notes == ["there is no adapter at the top: taking checkpoint-10"]


def test_bytes_may_come_from_another_server_which_gets_no_token(hub: str, server: FakeHub, tmp_path: Path) -> None:
    with fake_hub() as other:
        other.repository("org/bot", {**FILES, **BESIDE})
        server.elsewhere = other.url
        server.token = TOKEN
        _, stored = bring(tmp_path, server, f"{hub}://org/bot", HF_TOKEN=TOKEN, MODELSCOPE_API_TOKEN=TOKEN)
        assert content(stored) == FILES
        assert TOKEN in str(server.seen)
        assert TOKEN not in str(other.seen)
        assert len(other.seen) >= 2


def test_a_private_repository_says_which_variable_it_needs(hub: str, server: FakeHub, tmp_path: Path) -> None:
    server.token = TOKEN
    variable = {"hf": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}[hub]
    with pytest.raises(FetchError, match=variable):
        bring(tmp_path, server, f"{hub}://org/bot")
    with pytest.raises(FetchError, match="no such repository for us") as error:
        bring(tmp_path, server, f"{hub}://org/bot", **{variable: "wrong-token-of-ours"})
    assert "wrong-token-of-ours" not in str(error.value)
    _, stored = bring(tmp_path, server, f"{hub}://org/bot", **{variable: TOKEN})
    assert content(stored) == FILES


def test_a_gated_repository_says_what_to_do(server: FakeHub, tmp_path: Path) -> None:
    server.gated = True
    with pytest.raises(FetchError, match="gated: accept its terms"):
        bring(tmp_path, server, "hf://org/bot")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("org/nobody", "no such repository"),
        ("org/bot@nowhere", "no such revision"),
        ("org/bot@main/nowhere", "no such (folder or file|revision or folder)"),
    ],
)
def test_what_is_not_there_is_said(hub: str, source: str, words: str, server: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=words) as error:
        bring(tmp_path, server, f"{hub}://{source}")
    assert f"{hub}://org/" in str(error.value)


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"README.md": b"#"}, Code.CONFIG_MISSING),
        ({CONFIG: b"{}"}, Code.WEIGHTS_MISSING),
        ({CONFIG: b"{}", "adapter_model.bin": pickle.dumps([1.0])}, Code.PICKLE),
        ({CONFIG: b"{}", "adapter_model-00001-of-00002.safetensors": b""}, Code.WEIGHTS_MISSING),
    ],
)
def test_a_repository_without_an_adapter_is_refused_before_a_byte_is_fetched(
    hub: str, files: Mapping[str, bytes], code: Code, server: FakeHub, tmp_path: Path
) -> None:
    server.repository("org/other", files)
    with pytest.raises(RefusedError) as refused:
        bring(tmp_path, server, f"{hub}://org/other")
    assert refused.value.findings[0].code is code
    assert not any("/resolve/" in path or path.endswith("/repo") for path in server.paths())


def test_an_adapter_that_is_too_large_is_refused_before_a_byte_is_fetched(
    hub: str, server: FakeHub, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError) as refused:
        bring(tmp_path, server, f"{hub}://org/bot", limit=100_000)
    assert refused.value.findings[0].code is Code.TOO_LARGE
    server.repository("org/bot", {CONFIG: b" " * ((1 << 20) + 1), WEIGHTS: b""})
    with pytest.raises(RefusedError) as refused:
        bring(tmp_path, server, f"{hub}://org/bot")
    assert refused.value.findings[0].code is Code.TOO_LARGE
    assert not any("/resolve/" in path or path.endswith("/repo") for path in server.paths())


def test_content_that_is_not_what_the_hub_lists_is_refused_and_not_kept(
    hub: str, server: FakeHub, tmp_path: Path
) -> None:
    server.fault = lambda seen, answer: replace(answer, body=answer.body[:-1] + b"!")
    with pytest.raises(RefusedError) as refused:
        bring(tmp_path, server, f"{hub}://org/bot")
    assert refused.value.findings[0].code is Code.DIGEST
    assert parts(tmp_path) == []


def test_a_listing_with_nonsense_for_a_digest_is_not_believed(hub: str, server: FakeHub, tmp_path: Path) -> None:
    server.lie = "../../etc/passwd"
    with pytest.raises(FetchError, match="lists a file with the digest"):
        bring(tmp_path, server, f"{hub}://org/bot")


def test_an_import_that_was_cut_is_gone_on_with_by_the_next(hub: str, server: FakeHub, tmp_path: Path) -> None:
    """What had come is kept over the end of the process, and only the rest is asked for."""
    half = len(FILES[WEIGHTS]) // 2
    server.fault = lambda seen, answer: (
        replace(answer, status=404, cut=0)
        if "range" in seen.headers
        else replace(answer, cut=half if answer.body == FILES[WEIGHTS] else None)
    )
    with pytest.raises(FetchError):
        bring(tmp_path, server, f"{hub}://org/bot")
    assert sorted(parts(tmp_path)) == [CONFIG, WEIGHTS, "lock"]
    server.fault = None
    server.seen.clear()
    told = Told()
    _, stored = bring(tmp_path, server, f"{hub}://org/bot", told)
    assert content(stored) == FILES
    assert [seen.headers["range"] for seen in server.seen if "range" in seen.headers] == [f"bytes={half}-"]
    assert told.done[0][0] > half
    assert parts(tmp_path) == []


def test_offline_means_offline(server: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE"):
        bring(tmp_path, server, "hf://org/bot", HF_HUB_OFFLINE="1")
    assert server.seen == []


def test_fetches_that_never_ended_do_not_pile_up(server: FakeHub, tmp_path: Path) -> None:
    """Of twelve, the eight newest stay."""
    server.fault = lambda seen, answer: replace(answer, status=404)
    for number in range(12):
        server.repository(f"org/bot{number}", FILES)
        with pytest.raises(FetchError):
            bring(tmp_path, server, f"hf://org/bot{number}")
    assert len(list((tmp_path / "store" / "parts").iterdir())) == 8


# https


@contextmanager
def secured(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    (root / "tls").mkdir()
    trusted, context = certificate(root / "tls")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    with fake_hub(context) as server:
        yield server


def test_an_archive_behind_https_is_fetched_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tar(FILES)
    digest = hashlib.sha256(archive).hexdigest()
    with secured(tmp_path, monkeypatch) as server:
        server.files["bot.tar"] = archive
        url = f"{server.url}/files/bot.tar"
        source, stored = bring(tmp_path, server, f"{url}?X-Signature=secret#sha256={digest}")
        assert source == f"{url}#sha256={digest}"
        assert content(stored) == FILES
        with pytest.raises(RefusedError) as refused:
            bring(tmp_path, server, f"{url}?X-Signature=secret#sha256={'0' * 64}")
        assert refused.value.findings[0].code is Code.DIGEST
        assert "secret" not in str(refused.value)
        with pytest.raises(FetchError, match="404") as error:
            bring(tmp_path, server, f"{server.url}/files/other?X-Signature=secret#sha256={digest}")
        assert "secret" not in str(error.value)
        assert not any("authorization" in seen.headers for seen in server.seen)
    assert parts(tmp_path) == ["lock"]  # of the one that failed, for another attempt


def test_an_archive_that_is_none_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with secured(tmp_path, monkeypatch) as server:
        server.files["bot"] = b"hello"
        with pytest.raises(RefusedError) as refused:
            bring(tmp_path, server, f"{server.url}/files/bot#sha256={hashlib.sha256(b'hello').hexdigest()}")
        assert refused.value.findings[0].code is Code.ARCHIVE
    assert parts(tmp_path) == []


# S3


def bucket(server: FakeHub) -> UrlSource:
    archive = tar(FILES)
    server.objects["models/bots/my bot+1.tar"] = archive
    return UrlSource("s3://models/bots/my bot+1.tar", hashlib.sha256(archive).hexdigest())


def test_a_public_object_is_asked_for_without_a_signature(server: FakeHub, tmp_path: Path) -> None:
    source, stored = bring(tmp_path, server, bucket(server))
    assert source.startswith("s3://models/bots/my bot+1.tar#sha256=")
    assert content(stored) == FILES
    assert "authorization" not in server.seen[0].headers


def test_a_private_object_is_asked_for_with_a_signature(server: FakeHub, tmp_path: Path) -> None:
    server.secret = OWNER
    source = bucket(server)
    with pytest.raises(FetchError, match=r"403: check bucket and key, and AWS_ACCESS_KEY_ID"):
        bring(tmp_path, server, source)
    with pytest.raises(FetchError, match="403") as error:
        bring(tmp_path, server, source, AWS_ACCESS_KEY_ID=OWNER[0], AWS_SECRET_ACCESS_KEY="not-the-secret")
    assert "not-the-secret" not in str(error.value)
    own = {"AWS_ACCESS_KEY_ID": OWNER[0], "AWS_SECRET_ACCESS_KEY": OWNER[1], "AWS_SESSION_TOKEN": "temporary"}
    _, stored = bring(tmp_path, server, source, **own)
    assert content(stored) == FILES
    assert OWNER[1] not in str(server.seen)


def test_a_bucket_in_another_region_is_asked_there(server: FakeHub, tmp_path: Path) -> None:
    server.secret, server.region = OWNER, "eu-central-1"
    own = {"AWS_ACCESS_KEY_ID": OWNER[0], "AWS_SECRET_ACCESS_KEY": OWNER[1], "AWS_REGION": "us-west-2"}
    _, stored = bring(tmp_path, server, bucket(server), **own)
    assert content(stored) == FILES
    assert [seen.headers["authorization"].split("/")[2] for seen in server.seen] == ["us-west-2", "eu-central-1"]


@pytest.mark.parametrize(
    ("url", "environ", "asked"),
    [
        ("s3://bot/a/b.tar", {}, "https://bot.s3.us-east-1.amazonaws.com/a/b.tar"),
        ("s3://bot/b.tar", {"AWS_REGION": "eu-west-1"}, "https://bot.s3.eu-west-1.amazonaws.com/b.tar"),
        ("s3://bot/b.tar", {"AWS_DEFAULT_REGION": "eu-west-1"}, "https://bot.s3.eu-west-1.amazonaws.com/b.tar"),
        ("s3://my.bot/b.tar", {}, "https://s3.us-east-1.amazonaws.com/my.bot/b.tar"),
        ("s3://bot/ü +.tar", {}, "https://bot.s3.us-east-1.amazonaws.com/%C3%BC%20%2B.tar"),
        ("s3://bot/b.tar", {"AWS_ENDPOINT_URL": "https://minio:9000/"}, "https://minio:9000/bot/b.tar"),
        (
            "s3://bot/b.tar",
            {"AWS_ENDPOINT_URL_S3": "https://r2", "AWS_ENDPOINT_URL": "https://x"},
            "https://r2/bot/b.tar",
        ),
    ],
)
def test_an_object_is_asked_for_where_its_bucket_is(url: str, environ: Mapping[str, str], asked: str) -> None:
    assert s3.ask(url, environ, datetime.now(UTC)).url == asked


def test_the_signature_is_that_of_the_example_in_the_documentation_of_aws() -> None:
    """https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, "GET Object"."""
    headers = {
        "range": "bytes=0-9",
        "x-amz-content-sha256": hashlib.sha256(b"").hexdigest(),
        "x-amz-date": "20130524T000000Z",
    }
    key = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    value = s3.authorization("https://examplebucket.s3.amazonaws.com/test.txt", headers, *key, "us-east-1")
    assert value == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )
