"""The files of a merged model: how weights are laid into them, and that they appear whole or not at all."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.merge.checkpoint import Stored
from adapters.merge.errors import MergeError
from adapters.merge.folder import exported, require_disk, workplace
from adapters.merge.plan import Output, index, shards
from adapters.merge.sizes import parse_size
from adapters.safetensors import DTYPE_BITS, Tensor, read_header

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Stored(Path("base.safetensors"), Tensor("x", "F32", (1,), 0, 4))

shapes = st.lists(
    st.tuples(st.sampled_from(["BF16", "F32", "F64", "U8"]), st.lists(st.integers(1, 9), max_size=3).map(tuple)),
    min_size=1,
    max_size=30,
)


@given(shapes, st.integers(1, 4000))
def test_every_tensor_stands_in_one_file_aligned_and_no_file_is_too_large(
    tensors: list[tuple[str, tuple[int, ...]]], limit: int
) -> None:
    outputs = [Output(f"t{number}", dtype, shape, SOURCE) for number, (dtype, shape) in enumerate(tensors)]
    files = shards(outputs, limit)
    seen: list[str] = []
    for file in files:
        size = sum(output.size for output in file.outputs)
        assert size <= limit or len(file.outputs) == 1
        content = file.header() + bytes(size)
        read = read_header(io.BytesIO(content), len(content))
        assert [(t.name, t.dtype, t.shape) for t in read] == [(o.name, o.dtype, o.shape) for o in file.outputs]
        assert all(tensor.begin % (DTYPE_BITS[tensor.dtype] // 8) == 0 for tensor in read)
        seen += [tensor.name for tensor in read]
    assert sorted(seen) == sorted(output.name for output in outputs)
    listing = index(files)
    if len(files) == 1:
        assert listing is None
        assert files[0].name == "model.safetensors"
    else:
        assert listing is not None
        assert json.loads(listing)["weight_map"] == {o.name: file.name for file in files for o in file.outputs}


def test_sizes_are_read_as_people_write_them() -> None:
    assert [parse_size(text) for text in ("5GB", "1.5 GiB", "500mb", "77")] == [5 * 10**9, 3 << 29, 5 * 10**8, 77]
    for text in ("", "5 apples", "-1GB", "0", "5GBB", "١GB", "9" * 40):
        with pytest.raises(MergeError, match="is no size"):
            parse_size(text)


def test_a_folder_appears_whole_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    with exported(target) as part:
        (part / "config.json").write_text("{}")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["config.json"]
    assert os.listdir(target.parent) == ["model"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_an_empty_folder_may_be_there_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with exported(tmp_path / "empty") as part:
        (part / "x").touch()
    assert (tmp_path / "empty" / "x").exists()

    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in ("empty", "file", "link"):
        with pytest.raises(MergeError, match="exists and is not an empty folder"), exported(tmp_path / taken):
            pytest.fail("it began")
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "link"]


def test_one_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with exported(tmp_path / "model") as part:
            (part / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not os.listdir(tmp_path)


def test_what_came_to_be_there_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def late() -> None:
        with exported(tmp_path / "model"):
            (tmp_path / "model").mkdir()
            (tmp_path / "model" / "precious").touch()

    with pytest.raises(MergeError, match="is not an empty folder"):
        late()
    assert os.listdir(tmp_path / "model") == ["precious"]
    assert os.listdir(tmp_path) == ["model"]


def test_two_do_not_write_to_one_place_and_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time; from adapters.merge.folder import exported\n"
        "with exported(pathlib.Path(sys.argv[1])) as part:\n"
        "    (part / 'half').touch(); print('begun', flush=True); time.sleep(600)"
    )
    target = tmp_path / "model"
    with subprocess.Popen([sys.executable, "-c", program, str(target)], cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"begun\n"
        with pytest.raises(MergeError, match="another process is writing"), workplace(target):
            pytest.fail("it began")
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert os.listdir(tmp_path) == [".model.part"]
    with exported(target) as part:
        assert not os.listdir(part)
        (part / "whole").touch()
    assert os.listdir(target) == ["whole"]
    assert os.listdir(tmp_path) == ["model"]


def test_a_disk_that_is_too_small_is_said_beforehand(tmp_path: Path) -> None:
    require_disk(tmp_path / "not" / "there" / "yet", 1, "the merged model")
    with pytest.raises(MergeError, match=r"GB free, the merged model takes 1000000.0 GB"):
        require_disk(tmp_path / "not" / "there" / "yet", 10**15, "the merged model")
