"""Archives from strangers: what is an adapter's comes out, and nothing else, nowhere else."""

import os
import pickle
import random
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters import AdapterStore, Code, RefusedError, StoredAdapter, digest_of
from adapters.sources.archive import MAX_MEMBERS, unpack
from adapters.sources.pack import pack
from tests.fakes.adapter_corpus import TINY, Craft
from tests.fakes.archives import END, end_of, entry, gz, header, long_name, patched, pax, record, tar, zipped
from tests.patience import LATE
from tests.tiers import repeated

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = {CONFIG: b'{"r": 8}', WEIGHTS: bytes(range(256)) * 30}
BOTH = entry(CONFIG, FILES[CONFIG]) + entry(WEIGHTS, FILES[WEIGHTS])
MUCH = 1 << 34


class Quiet:
    """Progress that nobody looks at."""

    def __call__(self, done: int, total: int | None) -> None:
        assert 0 <= done <= (total or done)

    def note(self, text: str) -> None:
        raise AssertionError(text)


def take(root: Path, archive: bytes, limit: int = MUCH) -> StoredAdapter:
    (root / "archive").write_bytes(archive)
    store = AdapterStore.open(root / "store")
    return store.take(lambda target: unpack(root / "archive", target, limit, Quiet()))


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """All there is below, with sizes and times, but for the store's own locks."""
    found = {}
    for path in root.rglob("*"):
        if path.name not in ("lock", "versions.lock") and "staging" not in path.parts[-1:]:
            status = path.lstat()
            found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found


def prefixed(prefix: str) -> dict[str, bytes]:
    return {prefix + name: data for name, data in FILES.items()}


def sealed(*members: bytes) -> bytes:
    return b"".join(members) + END


ACCEPTED = {
    "ustar": tar(FILES, tarfile.USTAR_FORMAT),
    "gnu": tar(FILES, tarfile.GNU_FORMAT),
    "pax": tar(FILES),
    "gzip": gz(tar(FILES)),
    "in_a_folder": gz(tar(prefixed("bot/"))),
    "from_here": tar(prefixed("./")),
    "folders_listed": sealed(
        entry("./", kind=b"5"),
        entry("./bot/", kind=b"5"),
        entry(f"./bot/{CONFIG}", FILES[CONFIG]),
        entry(f"./bot/{WEIGHTS}", FILES[WEIGHTS]),
    ),
    "old_folder": sealed(entry("bot/"), *(entry(f"bot/{name}", data) for name, data in FILES.items())),
    "prefix_field": sealed(*(entry(name, data, prefix=b"bot") for name, data in FILES.items())),
    "gnu_long_name": sealed(
        long_name(f"./{'x' * 180}/{CONFIG}"),
        entry("cut", FILES[CONFIG], magic=b"ustar  \0"),
        long_name(f"{'x' * 180}/{WEIGHTS}"),
        entry("cut", FILES[WEIGHTS], magic=b"ustar  \0"),
    ),
    "global_comment": sealed(pax(b"g", comment="of git archive"), BOTH),
    "extended_times": sealed(
        pax(mtime="1.5", LIBARCHIVE_creationtime="1"), entry(CONFIG, FILES[CONFIG]), entry(WEIGHTS, FILES[WEIGHTS])
    ),
    "extended_size": sealed(pax(size="8"), entry(CONFIG, FILES[CONFIG]), entry(WEIGHTS, FILES[WEIGHTS])),
    "extended_size_alone": sealed(
        pax(size=str(len(FILES[WEIGHTS]))),
        header(WEIGHTS.encode()) + FILES[WEIGHTS] + bytes(-len(FILES[WEIGHTS]) % 512),
        entry(CONFIG, FILES[CONFIG]),
    ),
    "one_end_block": BOTH + bytes(512),
    "something_behind": sealed(BOTH) + b"not read",
    "pickles_beside": tar(
        {**FILES, "training_args.bin": pickle.dumps(Path("/")), "optimizer.pt": bytes(3000), "README.md": b"#"}
    ),
    "macos": tar({"._" + CONFIG: b"\0\5\26\7", **FILES, "._" + WEIGHTS: b"\0\5\26\7"}),
    "zip": zipped(FILES),
    "zip_stored": zipped(FILES, zipfile.ZIP_STORED),
    "zip_in_a_folder": zipped(prefixed("bot/")),
    "zip_with_comment": zipped(FILES, comment=b"0" * 40),
    "zip_unix": zipped(FILES, attributes=0o100644),
    "zip_macos": zipped({**prefixed("bot/"), f"__MACOSX/bot/._{CONFIG}": b"\0\5\26\7"}),
    "zip_pickles_beside": zipped({**FILES, "training_args.bin": pickle.dumps(Path("/"))}),
}

REFUSED: dict[str, tuple[bytes, Code, str]] = {}


def refused(name: str, archive: bytes, words: str, code: Code = Code.ARCHIVE) -> None:
    REFUSED[name] = (archive, code, words)


# Names that lead elsewhere
refused("slip", tar({"../" + CONFIG: b"{}"}), "leads out")
refused("slip_within", tar({"bot/../../" + CONFIG: b"{}"}), "leads out")
refused("slip_at_the_end", sealed(entry("bot/..", kind=b"5")), "leads out")
refused("absolute", sealed(entry("/etc/cron.d/x", b"x")), "leads out")
refused("absolute_kept_name", sealed(entry(f"/{CONFIG}", b"{}")), "leads out")
refused("doubled_slash", sealed(entry(f"bot//{CONFIG}", b"{}")), "leads out")
refused("nameless", sealed(entry("", b"x")), "leads out")
refused("backslash", sealed(entry("..\\" + CONFIG, b"{}")), "no file's name")
refused("newline", sealed(entry(f"{CONFIG}\n", b"{}")), "no file's name")
refused("escape_sequence", sealed(entry("\x1b[2J", b"{}")), "no file's name")
refused("long_name", sealed(long_name("x" * 300), entry("x", b"x")), "no file's name")
refused("long_prefix", sealed(entry("x" * 100, b"x", prefix=b"y" * 155)), "no file's name")
refused("not_utf8", sealed(header(b"\xff\xfe", 0)), "not UTF-8")
refused("extended_name_out", sealed(pax(path=f"../{CONFIG}"), entry(CONFIG, b"{}")), "leads out")
refused("extended_name_nul", sealed(pax(path=f"{CONFIG}\0x"), entry("x", b"{}")), "no file's name")
refused("zip_slip", zipped({"../" + CONFIG: b"{}"}), "leads out")
refused("zip_absolute", zipped({"/" + CONFIG: b"{}"}), "leads out")
refused("zip_backslash", zipped({"..\\" + CONFIG: b"{}"}), "no file's name")
refused("zip_nul", zipped({CONFIG + "?": b"{}"}).replace(b".json?", b".json\0"), "ends within")
refused("zip_local_name", zipped({CONFIG: b"{}"}).replace(b"adapter", b"edapter", 1), "damaged")

# What is no file
refused("symbolic_link", sealed(entry(CONFIG, kind=b"2", link=b"/etc/passwd")), "a symbolic link")
refused(
    "link_then_file", sealed(entry("bot", kind=b"2", link=b"/tmp"), entry(f"bot/{CONFIG}", b"{}")), "a symbolic link"
)
refused("hard_link", sealed(entry(WEIGHTS, kind=b"1", link=b"/etc/shadow")), "a hard link")
refused("long_link", sealed(entry("././@LongLink", b"/etc/passwd\0", b"K"), entry(CONFIG, kind=b"2")), "a link")
refused("character_device", sealed(entry(CONFIG, kind=b"3")), "a device")
refused("block_device", sealed(entry(CONFIG, kind=b"4")), "a device")
refused("pipe", sealed(entry(WEIGHTS, kind=b"6")), "a pipe")
refused("sparse", sealed(entry(WEIGHTS, b"x", b"S", magic=b"ustar  \0")), "a sparse file")
refused("sparse_extended", sealed(pax(GNU_sparse_major="1"), entry(WEIGHTS, b"x")), "sparse")
refused("contiguous", sealed(entry(CONFIG, b"{}", b"7")), "unknown kind")
refused("volume_label", sealed(entry("label", kind=b"V")), "unknown kind")
refused("folder_with_content", sealed(entry("bot/", b"content", b"5")), "has content")
refused("zip_symbolic_link", zipped({CONFIG: b"/etc/passwd"}, attributes=0o120777), "a symbolic link")
refused("zip_device", zipped({CONFIG: b""}, attributes=0o020666), "no regular file")
refused("zip_encrypted", patched(zipped(FILES), "flags", 1), "encrypted")
refused("zip_strongly_encrypted", patched(zipped(FILES), "flags", 0x41), "encrypted")

# More than one adapter
refused("twice", sealed(BOTH, entry(CONFIG, b"{}")), "twice")
refused("twice_in_a_way", sealed(BOTH, entry(f"./{CONFIG}", b"{}")), "twice")
refused("twice_but_for_case", sealed(BOTH, entry(CONFIG.upper(), b"{}")), "twice")
refused("two_folders", tar({**prefixed("a/"), **prefixed("b/")}), "more than one folder")
refused("beside_and_in_a_folder", tar({**FILES, **prefixed("b/")}), "more than one folder")
refused("checkpoint_within", tar({**prefixed("bot/"), **prefixed("bot/checkpoint-5/")}), "one folder deep")
refused("deep", tar(prefixed("a/b/")), "one folder deep")
refused("deep_folder", sealed(entry("a/b/", kind=b"5")), "one folder deep")
refused("zip_twice", zipped(FILES).replace(WEIGHTS.encode(), (CONFIG + "\0" * 6).encode()), "ends within")
refused("zip_two_folders", zipped({**prefixed("a/"), **prefixed("b/")}), "more than one folder")

# Bombs
refused("many_files", tar({f"{i}.txt": b"" for i in range(MAX_MEMBERS + 1)}), f"more than {MAX_MEMBERS} members")
refused("many_folders", b"".join(entry(f"{i}/", kind=b"5") for i in range(10_000)), "more than one folder")
refused("many_entries", entry("a.txt") * 20_000, "twice")
refused("many_extensions", pax(comment="x") * 10_000, "headers")
refused("large_extension", sealed(pax(comment="x" * 100_000), BOTH), "extended header has")
refused("config_without_end", tar({CONFIG: b" " * ((1 << 20) + 1)}), "more than", Code.TOO_LARGE)
refused(
    "weights_said_to_be_huge",
    sealed(header(WEIGHTS.encode(), size_field=b"\x80" + (17 << 30).to_bytes(11))),
    "more than",
    Code.TOO_LARGE,
)
refused("gzip_bomb", gz(tar({WEIGHTS: bytes(64 << 20)})), "times its size")
refused("gzip_bomb_beside", gz(tar({"other.bin": bytes(64 << 20), **FILES})), "inflates")
refused("gzip_bomb_behind", gz(tar(FILES) + bytes(64 << 20)), "inflates")
refused("zip_bomb", zipped({WEIGHTS: bytes(64 << 20), CONFIG: b"{}"}), "times its size")
refused("zip_lies_of_its_size", patched(zipped({WEIGHTS: bytes(64 << 20), CONFIG: b"{}"}), "size", 10), "damaged")
refused("zip_many", zipped({f"{i}": b"" for i in range(MAX_MEMBERS + 1)}), f"more than {MAX_MEMBERS}")
refused(
    "zip_said_to_have_few", end_of(zipped({f"{i}": b"" for i in range(40_000)}), here=2, total=2), "list of members"
)
refused("zip_said_to_have_two_counts", end_of(zipped(FILES), here=1), "members")
refused("zip_said_to_have_a_long_list", end_of(zipped(FILES), directory=1 << 30), "list of members")
refused("zip64", zipped(FILES)[:-22] + b"PK\x06\x07" + bytes(16) + zipped(FILES)[-22:], "4 GiB")
refused("zip_bzip2", zipped(FILES, zipfile.ZIP_BZIP2), "deflate")
refused("zip_lzma", zipped(FILES, zipfile.ZIP_LZMA), "deflate")
refused("zip_deflate64", patched(zipped(FILES), "method", 9), "deflate")

# Damage, and what readers understand differently
refused("empty", b"", "neither a tar nor a zip")
refused("text", b"hello\n" * 200, "neither a tar nor a zip")
refused("no_members", bytes(10_240), "neither a tar nor a zip")
refused("cut_in_a_header", sealed(BOTH)[:700], "cut off")
refused("cut_in_a_member", (entry(CONFIG, b"{}") + entry(WEIGHTS, bytes(5000)))[:-2000], "cut off")
refused("cut_between_members", entry(CONFIG, b"{}"), "cut off")
refused("cut_before_the_end", BOTH, "cut off")
refused("cut_in_an_extension", pax(comment="x" * 2000)[:-1000], "cut off")
refused("ends_after_an_extension", sealed(BOTH, pax(path="x")), "ends after")
refused("checksum", sealed(entry(CONFIG, b"{}", checksum=1)), "checksum")
refused("size_no_number", sealed(header(CONFIG.encode(), size_field=b"0000000000z\0")), "no size")
refused("size_negative", sealed(header(CONFIG.encode(), size_field=b"\xff" * 12)), "no size")
refused("size_beyond_all", sealed(header(CONFIG.encode(), size_field=b"\x80" + b"\xff" * 11)), "no size")
refused("two_sizes", sealed(pax(size="512"), entry(CONFIG, b"{}"), bytes(512)), "two sizes")
refused("two_names", sealed(pax(path=CONFIG), long_name("x"), entry("y", b"{}")), "two names")
refused("extended_twice", sealed(entry("x", record("path", "a") + record("path", "b"), b"x"), BOTH), "damaged")
refused("extended_length", sealed(entry("x", b"99 path=a\n", b"x"), BOTH), "damaged")
refused("extended_length_zero", sealed(entry("x", b"0 path=a\n", b"x"), BOTH), "damaged")
refused("extended_no_length", sealed(entry("x", b"path=a\n" * 900, b"x"), BOTH), "damaged")
refused("extended_size_no_number", sealed(pax(size="1e3"), BOTH), "size")
refused("extended_size_negative", sealed(pax(size="-512"), BOTH), "size")
refused("extended_link", sealed(pax(linkpath="/etc/passwd"), BOTH), "linkpath")
refused("global_name", sealed(pax(b"g", path=CONFIG), BOTH), "path")
refused("global_size", sealed(pax(b"g", size="0"), BOTH), "size")
refused("extended_not_utf8", sealed(entry("x", record("path", b"\xff"), b"x"), BOTH), "not UTF-8")
refused("no_magic_within", sealed(BOTH, entry("x", magic=b"")), "no POSIX tar")
refused("gzip_cut", gz(tar(FILES))[:-200], "cut off")
refused("gzip_checksum", gz(tar(FILES))[:-8] + bytes(8), "damaged")
refused("gzip_of_no_tar", gz(b"hello" * 1000), "no POSIX tar")
refused("gzip_of_gzip", gz(gz(tar(FILES)) + bytes(512)), "no POSIX tar")
refused("zip_cut", zipped(FILES)[:-30], "cut off")
refused("zip_checksum", patched(zipped(FILES), "crc", 1), "damaged")
refused("zip_shorter", patched(patched(zipped(FILES), "size", 1 << 20), "crc", 0), "damaged")
refused("zip_offset", patched(zipped(FILES), "offset", 1 << 30), "damaged")
refused("zip_list_elsewhere", end_of(zipped(FILES), begin=1 << 31), "damaged")
refused("zip_second_end", zipped(FILES) + b"PK\x05\x06" + bytes(18), "is no", Code.CONFIG_MISSING)
for magic, program in {
    b"\xfd7zXZ\0": "xz",
    b"BZh9": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"Rar!\x1a\7": "RAR",
}.items():
    refused(f"packed_with_{program}", magic + bytes(600), f"packed with {program}")

# No adapter in it
refused("other_files", tar({"README.md": b"#"}), f"no {CONFIG}", Code.CONFIG_MISSING)
refused("config_only", tar({CONFIG: b"{}"}), f"no {WEIGHTS}", Code.WEIGHTS_MISSING)
refused("shards", tar({CONFIG: b"{}", "adapter_model-00001-of-00002.safetensors": b""}), "split", Code.WEIGHTS_MISSING)
for suffix in ("bin", "pt", "pth", "ckpt", "pkl"):
    weights = {CONFIG: b"{}", f"adapter_model.{suffix}": pickle.dumps([1.0])}
    refused(f"pickle_{suffix}", tar(weights), "pickle", Code.PICKLE)
    refused(f"zip_pickle_{suffix}", zipped(weights), "pickle", Code.PICKLE)
refused("torch_save", zipped({"archive/data.pkl": pickle.dumps([1.0]), "archive/data/0": bytes(64)}), "one folder deep")


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_honest_archive_gives_the_adapter(name: str, tmp_path: Path) -> None:
    stored = take(tmp_path, ACCEPTED[name])
    assert {path.name: path.read_bytes() for path in stored.path.iterdir()} == FILES
    assert os.listdir(tmp_path / "store" / "staging") == []


@pytest.mark.parametrize("name", REFUSED)
def test_a_dishonest_archive_is_refused_at_once_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    archive, code, words = REFUSED[name]
    (tmp_path / "archive").write_bytes(archive)
    store = AdapterStore.open(tmp_path / "store")
    before = tree(tmp_path)
    began = time.process_time()
    with pytest.raises(RefusedError) as error:
        store.take(lambda target: unpack(tmp_path / "archive", target, MUCH, Quiet()))
    assert time.process_time() - began < LATE
    (finding,) = error.value.findings
    assert finding.code is code
    assert words in finding.message
    assert finding.remedy
    assert finding.message.isprintable()
    assert os.listdir(tmp_path / "store" / "staging") == []
    assert tree(tmp_path) == before


def test_an_archive_takes_no_more_than_is_allowed(tmp_path: Path) -> None:
    archive = tar({CONFIG: b"{}", WEIGHTS: random.Random(0).randbytes(50_000)})
    with pytest.raises(RefusedError, match="than is allowed"):
        take(tmp_path, archive, limit=49_000)


@pytest.mark.parametrize("program", ["tar cf", "tar czf", "tar --format=gnu -cf", "tar --format=ustar -cf"])
def test_what_tar_packs_is_taken(program: str, tmp_path: Path) -> None:
    Craft(TINY).write(tmp_path / "bot")
    subprocess.run([*program.split(), tmp_path / "whole", "-C", tmp_path, "bot"], check=True)
    subprocess.run([*program.split(), tmp_path / "content", "-C", tmp_path / "bot", "."], check=True)
    for name in ("whole", "content"):
        stored = take(tmp_path, (tmp_path / name).read_bytes())
        assert stored.digest == digest_of(tmp_path / "bot")


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "nothing"])
def test_an_archive_that_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    make: dict[str, Callable[[Path], object]] = {
        "link": lambda path: path.symlink_to("/etc/passwd"),
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
        "nothing": lambda path: None,
    }
    make[kind](tmp_path / "archive")
    store = AdapterStore.open(tmp_path / "store")
    with pytest.raises(RefusedError) as error:
        store.take(lambda target: unpack(tmp_path / "archive", target, MUCH, Quiet()))
    assert error.value.findings[0].code is Code.ARCHIVE


@repeated(300, 10_000)
def test_a_spoilt_archive_is_refused_or_taken_and_nothing_else(repetitions: int, tmp_path: Path) -> None:
    """Bytes are changed, cut, doubled and inserted at random; what comes of it is an adapter or a refusal."""
    rng = random.Random(0)
    honest = [ACCEPTED[name] for name in ("gnu", "pax", "gzip", "zip", "gnu_long_name", "zip_with_comment")]
    outcomes = {True: 0, False: 0}
    store = AdapterStore.open(tmp_path / "store")
    for _ in range(repetitions):
        data = bytearray(rng.choice(honest))
        for _ in range(rng.randint(1, 4)):
            at, count = rng.randrange(len(data)), rng.randint(1, 12)
            match rng.randrange(4):
                case 0:
                    data[at : at + count] = rng.randbytes(count)
                case 1:
                    del data[at : at + rng.choice((1, count, 512, len(data)))]
                    data = data or bytearray(1)
                case 2:
                    data[at:at] = data[at : at + 512]
                case _:
                    data[at] ^= 1 << rng.randrange(8)
        (tmp_path / "archive").write_bytes(data)
        try:
            store.take(lambda target: unpack(tmp_path / "archive", target, MUCH, Quiet()))
            outcomes[True] += 1
        except RefusedError:
            outcomes[False] += 1
    assert outcomes[True] > 0
    assert outcomes[False] > 0
    assert os.listdir(tmp_path / "store" / "staging") == []
    for version in store.versions():
        assert store.verify(version.digest)


def test_what_is_packed_here_is_unpacked_there(tmp_path: Path) -> None:
    Craft(TINY).write(tmp_path / "bot")
    (tmp_path / "bot" / "training_args.bin").write_bytes(pickle.dumps(Path("/")))
    (tmp_path / "bot" / "tokenizer_config.json").write_text("{}")
    with (tmp_path / "upload").open("wb") as file:
        assert pack(tmp_path / "bot", file) == tmp_path / "bot"
    with tarfile.open(tmp_path / "upload") as archive:
        assert archive.getnames() == [CONFIG, WEIGHTS, "tokenizer_config.json"]
    assert take(tmp_path, (tmp_path / "upload").read_bytes()).digest == digest_of(tmp_path / "bot")


def test_what_lies_beside_the_adapter_is_there_to_be_judged_and_not_kept(tmp_path: Path) -> None:
    judged = []
    (tmp_path / "archive").write_bytes(tar({**FILES, "tokenizer_config.json": b"{}", "added_tokens.json": b"{}"}))
    store = AdapterStore.open(tmp_path / "store")
    stored = store.take(
        lambda target: unpack(tmp_path / "archive", target, MUCH, Quiet()),
        lambda copy: judged.extend(sorted(os.listdir(copy))),
    )
    assert judged == [CONFIG, WEIGHTS, "added_tokens.json", "tokenizer_config.json"]
    assert sorted(os.listdir(stored.path)) == [CONFIG, WEIGHTS]


def test_packing_takes_the_newest_checkpoint_where_the_top_holds_none(tmp_path: Path) -> None:
    for step in (9, 10):
        craft = Craft(TINY)
        craft.config["lora_alpha"] = step
        craft.write(tmp_path / "run" / f"checkpoint-{step}")
    with (tmp_path / "upload").open("wb") as file:
        assert pack(tmp_path / "run", file) == tmp_path / "run" / "checkpoint-10"
    assert take(tmp_path, (tmp_path / "upload").read_bytes()).digest == digest_of(tmp_path / "run" / "checkpoint-10")


def test_packing_the_same_adapter_twice_makes_the_same_bytes(tmp_path: Path) -> None:
    Craft(TINY).write(tmp_path / "bot")
    with (tmp_path / "one").open("wb") as one, (tmp_path / "two").open("wb") as two:
        pack(tmp_path / "bot", one)
        os.utime(tmp_path / "bot" / CONFIG, (0, 0))
        pack(tmp_path / "bot", two)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_packing_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bot").mkdir()
    (tmp_path / "bot" / CONFIG).write_text("{}")
    (tmp_path / "bot" / "adapter_model.bin").write_bytes(b"")
    with (tmp_path / "upload").open("wb") as file, pytest.raises(RefusedError, match="pickle"):
        pack(tmp_path / "bot", file)
