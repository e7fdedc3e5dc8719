"""Imports in a process of their own: what the gateway learns of them, and what is left of them.

Every import here is a real process; the hub is a real server (tests/fakes/fake_hub.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from adapters import AdapterStore, Code, digest_of
from adapters.job import Host, Limits
from adapters.sources.pack import pack
from adapters.sources.source import ArchiveSource, FolderSource, HubSource, Source, UrlSource
from gateway.controlplane.imports import Imported, ImportFailed, ImportRefused, Imports, Progress, import_environment
from gateway.controlplane.observed import Phase
from tests.fakes.adapter_corpus import SMOLLM2, TINY, Craft, write_base
from tests.fakes.archives import tar
from tests.fakes.fake_hub import Answer, FakeHub, Seen, fake_hub
from tests.patience import LATE
from tests.processes import alive

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ANY = Host()  # nothing is known of it
TOKEN = "hf_secret-token"


def crafted(folder: Path, seed: int = 0, **config: object) -> Path:
    craft = Craft(TINY)
    craft.config |= {"lora_alpha": seed + 1, **config}
    craft.write(folder)
    return folder


def packed(folder: Path, archive: Path) -> ArchiveSource:
    with archive.open("wb") as file:
        pack(folder, file)
    return ArchiveSource(archive)


def importer(
    root: Path, environ: Mapping[str, str] = os.environ, limits: Limits | None = None, at_once: int = 2
) -> Imports:
    return Imports(root / "store", environ, limits=limits, at_once=at_once)


async def take(
    root: Path, source: Source, *hosts: Host, limits: Limits | None = None
) -> tuple[Imported, list[Progress]]:
    told: list[Progress] = []
    async with asyncio.timeout(6 * LATE):
        return await importer(root, limits=limits).run(source, hosts, told.append), told


def staged(root: Path) -> list[str]:
    """What lies in the store's staging after the next one opens it."""
    AdapterStore.open(root / "store")
    return os.listdir(root / "store" / "staging")


async def eventually(seen: Callable[[], bool]) -> None:
    async with asyncio.timeout(3 * LATE):
        while not seen():
            await asyncio.sleep(0.01)


@dataclass
class Stalled:
    """An import that waits for a hub which sent half of the weights and then nothing more."""

    task: asyncio.Task[Imported]
    hub: FakeHub
    process: psutil.Process
    weights: bytes
    part: Path


@asynccontextmanager
async def stalled(root: Path, limits: Limits | None = None) -> AsyncIterator[Stalled]:
    content = {path.name: path.read_bytes() for path in crafted(root / "content").iterdir()}
    half = len(content[WEIGHTS]) // 2

    def stall(_: Seen, answer: Answer) -> Answer:
        return replace(answer, cut=half, stall=True) if answer.body == content[WEIGHTS] else answer

    with fake_hub() as hub:
        hub.repository("org/bot", content)
        hub.fault = stall
        environ = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "GATEWAY_ADMIN_KEY": "admin-secret"}
        run = importer(root, environ, limits).run(HubSource("hf", "org/bot"), [ANY], lambda progress: None)
        task = asyncio.create_task(run)
        try:
            parts = root / "store" / "parts"
            await eventually(lambda: [p.stat().st_size for p in parts.glob(f"*/{WEIGHTS}")] == [half])
            (child,) = (p for p in psutil.Process().children() if "adapters.importing" in p.cmdline())
            yield Stalled(task, hub, child, content[WEIGHTS], next(parts.glob(f"*/{WEIGHTS}")))
        finally:
            task.cancel()
            await asyncio.wait({task})


async def test_a_folder_is_judged_for_every_host_and_kept(tmp_path: Path) -> None:
    source = crafted(tmp_path / "bot")
    tiny = Host(str(write_base(tmp_path / "tiny-llama")), 16)
    other = Host(str(write_base(tmp_path / "other", SMOLLM2, weights=False)), 16)
    small = Host(tiny.base, 4)

    found, told = await take(tmp_path, FolderSource(source), tiny, other, small, ANY)

    assert [verdict.ok for verdict in found.verdicts] == [True, False, False, True]
    assert {finding.code for finding in found.verdicts[1].findings} >= {Code.SHAPE}
    assert [finding.code for finding in found.verdicts[2].findings] == [Code.RANK_TOO_LARGE]
    assert "--max-lora-rank 8" in found.verdicts[2].findings[0].remedy
    assert found.digest == digest_of(source)
    assert found.path == str(tmp_path / "store" / "sha256" / found.digest)
    assert AdapterStore.open(tmp_path / "store").verify(found.digest)
    assert (found.base, found.rank, found.source) == ("somebody/tiny-llama", 8, f"folder {source}")
    assert found.size == 2 * sum(8 * (out + into) for out, into in TINY.modules().values())
    assert [step.phase for step in told] == [Phase.VALIDATING]


async def test_without_hosts_an_adapter_is_judged_by_itself(tmp_path: Path) -> None:
    found, _ = await take(tmp_path, FolderSource(crafted(tmp_path / "bot")))
    assert [verdict.ok for verdict in found.verdicts] in ([], [True])
    with pytest.raises(ImportRefused):
        await take(tmp_path, FolderSource(crafted(tmp_path / "dora", use_dora=True)))


async def test_an_adapter_that_fits_no_host_is_refused_with_every_reason(tmp_path: Path) -> None:
    source = FolderSource(crafted(tmp_path / "bot", use_dora=True))
    with pytest.raises(ImportRefused) as refused:
        await take(tmp_path, source, ANY, Host(str(write_base(tmp_path / "tiny-llama")), 4))
    assert [finding.code for finding in refused.value.findings] == [Code.DORA, Code.RANK_TOO_LARGE]
    assert [verdict.ok for verdict in refused.value.verdicts] == [False, False]
    assert "DoRA" in str(refused.value)
    assert AdapterStore.open(tmp_path / "store").versions() == ()


async def test_a_base_model_that_cannot_be_read_is_said_and_keeps_nobody_out(tmp_path: Path) -> None:
    found, _ = await take(tmp_path, FolderSource(crafted(tmp_path / "bot")), Host(str(tmp_path / "nowhere"), 16))
    (verdict,) = found.verdicts
    assert verdict.ok
    assert any("nowhere" in finding.message for finding in verdict.findings)


async def test_the_output_of_a_training_is_taken_as_it_is(tmp_path: Path) -> None:
    """Checkpoints, pickles and notes beside the adapter; without one at the top the newest one, and it says so."""
    run = tmp_path / "run"
    for step in (5, 10):
        crafted(run / f"checkpoint-{step}", step)
        (run / f"checkpoint-{step}" / "optimizer.pt").write_bytes(pickle.dumps(Path("/")))
    (run / "training_args.bin").write_bytes(pickle.dumps(Path("/")))
    (run / "trainer_state.json").write_text("{}")
    found, told = await take(tmp_path, FolderSource(run), ANY)
    assert found.source == f"folder {run / 'checkpoint-10'}"
    assert found.digest == digest_of(run / "checkpoint-10")
    assert [step.note for step in told if step.note] == ["there is no adapter at the top: taking checkpoint-10"]

    crafted(tmp_path / "top", 3)
    for name in (CONFIG, WEIGHTS):
        (tmp_path / "top" / name).rename(run / name)
    found, told = await take(tmp_path, FolderSource(run), ANY)
    assert found.source == f"folder {run}"
    assert not [step.note for step in told if step.note]


async def test_an_archive_is_unpacked_judged_and_kept_and_is_itself_left_alone(tmp_path: Path) -> None:
    source = packed(crafted(tmp_path / "bot"), tmp_path / "upload")
    found, told = await take(tmp_path, source, ANY)
    assert found.digest == digest_of(tmp_path / "bot")
    assert found.source == "upload"
    size = source.path.stat().st_size
    assert [step.phase for step in told] == [Phase.FETCHING, Phase.VALIDATING]
    assert told[0].total == size
    assert stat.S_IMODE(os.stat(found.path).st_mode) == 0o755
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in os.scandir(found.path)} == {0o444}


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"../" + CONFIG: b"{}"}, Code.ARCHIVE),
        ({CONFIG: b"{}", "adapter_model.bin": pickle.dumps([1.0])}, Code.PICKLE),
        ({CONFIG: b"{}", WEIGHTS: pickle.dumps([1.0], protocol=2)}, Code.PICKLE),
        ({CONFIG: b"{}", WEIGHTS: b"PK\3\4" + bytes(100)}, Code.PICKLE),
        ({CONFIG: b'{"r": 1000000}', WEIGHTS: b"x"}, Code.RANK),
        ({CONFIG: b'{"r": 8, "lora_alpha": NaN}', WEIGHTS: b"x"}, Code.CONFIG),
        ({CONFIG: b'{"auto_map": {"x": "y"}}', WEIGHTS: b"x"}, Code.REMOTE_CODE),
        ({CONFIG: b'{"r": 8, "lora_alpha": 8, "target_modules": "(a+)+$"}', WEIGHTS: b"x"}, Code.PATTERN),
    ],
)
async def test_a_bad_upload_is_refused_with_a_reason_and_leaves_nothing(
    files: Mapping[str, bytes], code: Code, tmp_path: Path
) -> None:
    (tmp_path / "upload").write_bytes(tar(files))
    with pytest.raises(ImportRefused) as refused:
        await take(tmp_path, ArchiveSource(tmp_path / "upload"), ANY)
    assert code in {finding.code for finding in refused.value.findings}
    assert all(finding.remedy for finding in refused.value.findings)
    assert staged(tmp_path) == []
    assert os.listdir(tmp_path / "store" / "sha256") == []
    assert sorted(os.listdir(tmp_path)) == ["store", "upload"]


async def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="not a folder that can be read"):
        await take(tmp_path, FolderSource(tmp_path / "nowhere"), ANY)


async def test_a_damaged_version_is_not_given_out_again(tmp_path: Path) -> None:
    found, _ = await take(tmp_path, FolderSource(crafted(tmp_path / "bot")), ANY)
    weights = Path(found.path) / WEIGHTS
    weights.chmod(0o644)
    weights.write_bytes(b"damaged")
    with pytest.raises(ImportFailed, match="damaged"):
        await take(tmp_path, FolderSource(tmp_path / "bot"), ANY)


async def test_a_file_beyond_the_limit_of_bytes_is_not_written(tmp_path: Path) -> None:
    source = FolderSource(crafted(tmp_path / "bot"))
    with pytest.raises((ImportFailed, ImportRefused), match="larger than 10000 bytes"):
        await take(tmp_path, source, ANY, limits=Limits(bytes=10_000))
    assert staged(tmp_path) == []


async def test_an_import_that_needs_more_memory_than_it_may_ends(tmp_path: Path) -> None:
    base = write_base(tmp_path / "tiny-llama")
    (base / "model.safetensors.index.json").write_text("[" + "[1]," * 8_000_000 + "1]")
    with pytest.raises(ImportFailed, match=r"memory|unexpectedly"):
        await take(
            tmp_path, FolderSource(crafted(tmp_path / "bot")), Host(str(base), 16), limits=Limits(memory=200 << 20)
        )
    assert staged(tmp_path) == []


async def test_an_import_that_takes_too_long_ends_and_keeps_what_came(tmp_path: Path) -> None:
    async with stalled(tmp_path, Limits(seconds=6.0)) as import_:
        with pytest.raises(ImportFailed, match="longer than 6 s"):
            await asyncio.wait_for(import_.task, 3 * LATE)
        assert not alive([import_.process])
        assert import_.part.read_bytes() == import_.weights[: len(import_.weights) // 2]
    assert staged(tmp_path) == []


async def test_a_cancelled_import_leaves_no_process_and_the_next_goes_on_where_it_ended(tmp_path: Path) -> None:
    async with stalled(tmp_path) as import_:
        import_.task.cancel()
        await asyncio.wait({import_.task})
        assert import_.task.cancelled()
        assert not alive([import_.process])
        import_.hub.fault = None
        environ = {**os.environ, "HF_ENDPOINT": import_.hub.url}
        found = await importer(tmp_path, environ).run(HubSource("hf", "org/bot"), [ANY], lambda progress: None)
        assert found.digest == digest_of(tmp_path / "content")
        assert found.source == f"hf://org/bot@{import_.hub.commit}"
        ranges = [seen.headers["range"] for seen in import_.hub.seen if "range" in seen.headers]
        assert ranges == [f"bytes={len(import_.weights) // 2}-"]
    assert staged(tmp_path) == []


async def test_an_import_whose_process_is_killed_has_failed(tmp_path: Path) -> None:
    async with stalled(tmp_path) as import_:
        import_.process.kill()
        with pytest.raises(ImportFailed, match="was killed"):
            await asyncio.wait_for(import_.task, 3 * LATE)
    assert staged(tmp_path) == []


async def test_the_process_is_bounded_before_it_reads_anything(tmp_path: Path) -> None:
    limits = Limits(bytes=1 << 30, seconds=600.0, memory=1 << 30)
    async with stalled(tmp_path, limits) as import_:
        process = import_.process
        assert process.rlimit(psutil.RLIMIT_AS) == (1 << 30, 1 << 30)
        assert process.rlimit(psutil.RLIMIT_FSIZE) == (1 << 30, 1 << 30)
        assert process.rlimit(psutil.RLIMIT_CPU) == (600, 600)
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert process.rlimit(psutil.RLIMIT_NOFILE)[1] <= 256
        assert process.nice() > psutil.Process().nice()
        assert os.getsid(process.pid) == process.pid


async def test_the_process_is_given_only_what_its_source_needs(tmp_path: Path) -> None:
    async with stalled(tmp_path) as import_:
        environment = import_.process.environ()
        assert environment["HF_TOKEN"] == TOKEN
        assert "GATEWAY_ADMIN_KEY" not in environment
        assert "HOME" not in environment


def test_credentials_are_for_their_own_source() -> None:
    environ = {
        **dict.fromkeys(("HF_TOKEN", "HF_ENDPOINT", "MODELSCOPE_API_TOKEN", "AWS_SECRET_ACCESS_KEY"), "x"),
        **dict.fromkeys(("HTTPS_PROXY", "no_proxy", "SSL_CERT_FILE", "PATH"), "y"),
        **dict.fromkeys(("GATEWAY_ADMIN_KEY", "OPENAI_API_KEY", "HOME", "PYTHONPATH", "LD_PRELOAD"), "z"),
    }
    network = {"HTTPS_PROXY", "no_proxy", "SSL_CERT_FILE"}
    digest = "0" * 64
    for source, names in {
        FolderSource(Path("/x")): set(),
        ArchiveSource(Path("/x")): set(),
        HubSource("hf", "org/bot"): {*network, "HF_TOKEN", "HF_ENDPOINT"},
        HubSource("modelscope", "org/bot"): {*network, "MODELSCOPE_API_TOKEN"},
        UrlSource("https://host/x", digest): network,
        UrlSource("s3://bucket/x", digest): {*network, "AWS_SECRET_ACCESS_KEY"},
    }.items():
        found = import_environment(environ, source)
        assert {name for name, value in found.items() if value in "xyz"} == {*names, "PATH"}
        assert "z" not in found.values()


async def test_no_secret_is_in_what_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[Progress] = []
    with fake_hub() as hub:
        hub.token = "another-token"
        environ = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "PATH": os.environ["PATH"]}
        with pytest.raises(ImportFailed, match="needs HF_TOKEN") as failed:
            await importer(tmp_path, environ).run(HubSource("hf", "org/bot"), [ANY], told.append)
        assert any(TOKEN in value for seen in hub.seen for value in seen.headers.values())
    assert TOKEN not in f"{failed.value} {told} {caplog.text}"


async def test_so_many_imports_run_at_once_and_the_others_wait(tmp_path: Path) -> None:
    async with stalled(tmp_path) as first:
        imports = importer(tmp_path, {**os.environ, "HF_ENDPOINT": first.hub.url}, at_once=1)
        seen = len(first.hub.seen)
        other = asyncio.create_task(imports.run(HubSource("hf", "org/bot", "v1"), [ANY], lambda progress: None))
        third = asyncio.create_task(imports.run(FolderSource(tmp_path / "content"), [ANY], lambda progress: None))
        await eventually(lambda: len(first.hub.seen) > seen)
        assert not third.done()
        assert len([p for p in psutil.Process().children() if "adapters.importing" in p.cmdline()]) == 2
        other.cancel()
        assert (await asyncio.wait_for(third, 3 * LATE)).digest == digest_of(tmp_path / "content")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 3", "ended unexpectedly .code 3."),
        ("kill -KILL $$", "was killed"),
        ("kill -XCPU $$", "longer than"),
        ("echo nonsense", "a line that is none"),
        ("echo '[1]'", "a line that is none"),
        ('echo \'{"phase": "Dreaming"}\'', "a line that is none"),
        ('echo \'{"phase": "Fetching", "done": "much"}\'', "a line that is none"),
        ('echo \'{"phase": "Done", "digest": "x"}\'', "a line that is none"),
        ('echo \'{"phase": "Refused", "findings": [{"code": "unheard of"}], "verdicts": []}\'', "a line that is none"),
        ("yes | tr -d '\\n'", "a line that is none"),
        ('echo \'{"phase": "Failed", "reason": "the disk"}\'', "^the disk$"),
    ],
)
async def test_whatever_the_process_does_the_import_ends_with_a_sentence(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(ImportFailed, match=words):
        await take(tmp_path, FolderSource(tmp_path), ANY)
    assert not [p for p in psutil.Process().children(recursive=True) if "sh" in p.name()]


async def test_what_the_process_complains_of_is_in_our_log_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\necho "Traceback: $HF_TOKEN is wrong" >&2; exit 1\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(ImportFailed, match="unexpectedly"):
        await importer(tmp_path, {"HF_TOKEN": TOKEN}).run(HubSource("hf", "org/bot"), [ANY], lambda progress: None)
    assert "Traceback: *** is wrong" in caplog.text


async def test_a_process_that_cannot_be_started_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "nowhere"))
    with pytest.raises(ImportFailed, match="could not be started"):
        await take(tmp_path, FolderSource(tmp_path), ANY)


async def test_a_process_that_ignores_its_time_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.controlplane.imports._GRACE", 0.1)
    (tmp_path / "python").write_text("#!/bin/sh\nsleep 1000 & sleep 1000\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(ImportFailed, match=r"longer than 0\.2 s"):
        await take(tmp_path, FolderSource(tmp_path), ANY, limits=Limits(seconds=0.2))
    await eventually(
        lambda: not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "1000"]]
    )
