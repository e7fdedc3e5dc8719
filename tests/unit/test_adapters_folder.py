"""Source folders: what appears, changes and goes is seen, once it is quiet."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from adapters import Changes, Code, FolderState, Scan, changes, scan
from tests.fakes.adapter_corpus import CASES, TINY, Craft

NOTHING = Changes((), (), (), ())


def lay(folder: Path, alpha: int = 16) -> Path:
    craft = Craft(TINY)
    craft.config["lora_alpha"] = alpha
    craft.write(folder)
    return folder


def names(states: tuple[FolderState, ...]) -> list[str]:
    return [state.name for state in states]


def known(seen: Scan) -> Mapping[str, str]:
    """What a caller holds who took up all there is."""
    return {state.name: state.fingerprint for state in seen.adapters.values()}


def test_each_folder_with_an_adapter_is_one_by_the_name_of_the_folder(tmp_path: Path) -> None:
    lay(tmp_path / "pirate")
    lay(tmp_path / "json-v1.2_x")
    lay(tmp_path / "pirate" / "checkpoint-500")
    lay(tmp_path / "group" / "within")
    lay(tmp_path / ".pirate.partial")
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").write_text("")

    seen = scan([tmp_path])

    assert sorted(seen.adapters) == ["json-v1.2_x", "pirate"]
    assert seen.adapters["pirate"].path == tmp_path / "pirate"
    assert seen.adapters["pirate"].complete
    assert seen.findings == ()


def test_a_source_that_is_an_adapter_itself_offers_itself_alone(tmp_path: Path) -> None:
    lay(tmp_path / "pirate")
    lay(tmp_path / "pirate" / "checkpoint-500")
    assert sorted(scan([tmp_path / "pirate"]).adapters) == ["pirate"]


def test_an_adapter_folder_may_be_a_link(tmp_path: Path) -> None:
    lay(tmp_path / "elsewhere" / "v7")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "pirate").symlink_to(tmp_path / "elsewhere" / "v7")
    before = scan([tmp_path / "source"])
    assert before.adapters["pirate"].complete
    lay(tmp_path / "elsewhere" / "v8")
    (tmp_path / "source" / "pirate").unlink()
    (tmp_path / "source" / "pirate").symlink_to(tmp_path / "elsewhere" / "v8")
    after = scan([tmp_path / "source"])
    assert names(changes(known(before), after, after).changed) == ["pirate"]


@pytest.mark.parametrize("name", ["Pirate", "pi rate", "-x", ".".join(["a" * 40] * 2), "pirät", "a\nb", "x@1"])
def test_a_folder_whose_name_is_no_adapter_name_is_a_finding(name: str, tmp_path: Path) -> None:
    lay(tmp_path / name)
    seen = scan([tmp_path])
    assert not seen.adapters
    [finding] = seen.findings
    assert finding.code is Code.NAME
    assert finding.message.isprintable()


def test_of_two_folders_of_one_name_the_first_source_counts(tmp_path: Path) -> None:
    lay(tmp_path / "a" / "pirate")
    lay(tmp_path / "b" / "pirate")
    seen = scan([tmp_path / "a", tmp_path / "b"])
    assert seen.adapters["pirate"].path == tmp_path / "a" / "pirate"
    [finding] = seen.findings
    assert str(tmp_path / "b" / "pirate") in finding.message


def test_a_source_that_cannot_be_read_is_a_finding_and_takes_nothing_away(tmp_path: Path) -> None:
    lay(tmp_path / "a" / "pirate")
    lay(tmp_path / "b" / "json")
    sources = [tmp_path / "a", tmp_path / "b"]
    before = scan(sources)
    (tmp_path / "b").rename(tmp_path / "away")

    after = scan(sources)

    assert not after.whole
    assert sorted(after.adapters) == ["pirate"]
    [finding] = after.findings
    assert (finding.code, str(tmp_path / "b") in finding.message) == (Code.FOLDER, True)
    assert changes(known(before), after, after) == NOTHING


def test_one_folder_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    lay(tmp_path / "pirate")
    (tmp_path / "loop").symlink_to("loop")
    seen = scan([tmp_path])
    assert sorted(seen.adapters) == ["pirate"]
    assert len(seen.findings) == 1


def test_a_quiet_folder_appears_changes_and_goes(tmp_path: Path) -> None:
    empty = scan([tmp_path])
    lay(tmp_path / "pirate")
    first = scan([tmp_path])
    appeared = changes({}, first, scan([tmp_path]))
    assert (names(appeared.appeared), appeared.changed, appeared.gone) == (["pirate"], (), ())
    assert changes(known(first), first, first) == NOTHING

    shutil.rmtree(tmp_path / "pirate")
    lay(tmp_path / "pirate", alpha=32)
    second = scan([tmp_path])
    assert names(changes(known(first), second, second).changed) == ["pirate"]

    shutil.rmtree(tmp_path / "pirate")
    assert changes(known(second), empty, scan([tmp_path])).gone == ("pirate",)


def test_a_folder_that_is_still_being_written_is_left_until_it_is_quiet(tmp_path: Path) -> None:
    lay(tmp_path / "source" / "pirate")
    weights = tmp_path / "source" / "pirate" / "adapter_model.safetensors"
    data = weights.read_bytes()
    scans = []
    weights.write_bytes(b"")
    for part in (data[:1000], data[1000:], b""):
        with weights.open("ab") as file:
            file.write(part)
        scans.append(scan([tmp_path / "source"]))
    assert changes({}, scans[0], scans[1]) == Changes((), (), (), ("pirate",))
    assert names(changes({}, scans[1], scans[2]).appeared) == ["pirate"]


def test_a_folder_without_its_weights_waits_and_says_for_what(tmp_path: Path) -> None:
    lay(tmp_path / "pirate")
    (tmp_path / "pirate" / "adapter_model.safetensors").unlink()
    seen = scan([tmp_path])
    assert changes({}, seen, seen).settling == ("pirate",)
    [finding] = seen.findings
    assert (finding.code, finding.severity) == (Code.WEIGHTS_MISSING, "warning")
    assert finding.message.startswith("pirate: ")


def test_a_folder_with_a_pickle_alone_says_why_it_waits(tmp_path: Path) -> None:
    next(case for case in CASES if case.name == "pickled_weights").write(tmp_path / "pirate")
    [finding] = scan([tmp_path]).findings
    assert finding.code is Code.PICKLE


def test_a_folder_that_is_replaced_is_not_gone_in_between(tmp_path: Path) -> None:
    lay(tmp_path / "pirate")
    before = scan([tmp_path])
    shutil.rmtree(tmp_path / "pirate")
    between = scan([tmp_path])
    assert changes(known(before), before, between) == Changes((), (), (), ("pirate",))
    lay(tmp_path / "pirate", alpha=32)
    after = scan([tmp_path])
    assert changes(known(before), between, after) == Changes((), (), (), ("pirate",))
    assert names(changes(known(before), after, scan([tmp_path])).changed) == ["pirate"]


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_a_change(tmp_path: Path) -> None:
    config = lay(tmp_path / "pirate") / "adapter_config.json"
    before = scan([tmp_path])
    stat, data = config.stat(), config.read_bytes().replace(b'"lora_alpha": 16', b'"lora_alpha": 17')
    fresh = tmp_path / "pirate" / ".new"
    fresh.write_bytes(data)
    os.utime(fresh, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    fresh.rename(config)
    assert config.stat().st_size == stat.st_size
    after = scan([tmp_path])
    assert names(changes(known(before), after, after).changed) == ["pirate"]


def test_files_beside_the_adapter_are_no_change(tmp_path: Path) -> None:
    lay(tmp_path / "pirate")
    before = scan([tmp_path])
    (tmp_path / "pirate" / "trainer_log.jsonl").write_text("{}")
    lay(tmp_path / "pirate" / "checkpoint-2")
    assert changes(known(before), before, scan([tmp_path])) == NOTHING
