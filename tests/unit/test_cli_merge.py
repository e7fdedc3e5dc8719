"""`gateway adapters merge` and `export`: what can be said without an engine's environment, and how such a one fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.fakes.adapter_corpus import TINY, Craft, write_base
from tests.unit.commands import gateway, gateway_here


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    write_base(tmp_path / "base")
    Craft(TINY).write(tmp_path / "adapter")
    return tmp_path


def python(folder: Path, program: str) -> Path:
    """A stand-in for an environment's Python."""
    file = folder / "python"
    file.write_text(f"#!{sys.executable}\nimport json, os, sys\n{program}\n")
    file.chmod(0o755)
    return file


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("merge --adapter adapter --export out", "which model? give --base"),
        ("merge --base base --export out", "which adapter? give --adapter"),
        ("merge --base base --adapter adapter", "where to? give --export"),
        ("merge --base org/model --adapter adapter --export out", "base model org/model is not on this machine"),
        ("merge --base base --adapter adapter --export out --python nowhere", "nowhere does not start (No such file"),
        ("merge --config nothing.yaml", "nothing.yaml cannot be read"),
    ],
)
def test_what_is_missing_is_asked_for(desk: Path, words: str, reason: str) -> None:
    ran = gateway_here("adapters", *words.split(), cwd=desk, env={"HOME": str(desk)})
    assert ran.returncode == 1
    assert reason in ran.stderr
    assert not (desk / "out").exists()


@pytest.mark.parametrize("words", ["merge --export out", "export --to gguf out.gguf"])
def test_an_environment_without_torch_is_told_to_be_one(desk: Path, words: str) -> None:
    """Ours is one."""
    words = f"{words} --base base --adapter adapter --python {sys.executable}"
    ran = gateway("adapters", *words.split(), cwd=desk)
    assert ran.returncode == 1
    assert f"{sys.executable} has no torch, transformers, peft, safetensors: use the engine's environment" in ran.stderr
    assert not list(desk.glob("*out*"))


def test_what_the_file_of_llama_factory_says_is_handed_on(desk: Path) -> None:
    (desk / "export.yaml").write_text(
        "model_name_or_path: base\nadapter_name_or_path: one,two\nexport_dir: merged\nexport_size: 2\n"
        "infer_dtype: float32\ntemplate: llama3\n"
    )
    echo = python(desk, "print(json.dumps({'phase': 'Done', 'argv': sys.argv[1:], 'where': os.environ['PYTHONPATH']}))")
    words = ("merge", "--config", "export.yaml", "--adapter", "three", "--python", echo, "--json")
    ran = gateway("adapters", *words, cwd=desk, env={"PYTHONHOME": "", "VIRTUAL_ENV": "/elsewhere"})
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["argv"] == [
        "-m", "adapters.merge", "--base", str(desk / "base"), "--dtype", "float32", "--adapter", "three",
        "--export", "merged", "--shard-size", "2000000000",
    ]  # fmt: skip
    assert "template is passed over: the merged model keeps the chat template" in ran.stderr


def test_the_program_can_import_our_adapters_and_nothing_else_of_ours(desk: Path) -> None:
    looked = python(
        desk,
        "print(json.dumps({'phase': 'Done', 'seen': os.listdir(os.environ['PYTHONPATH']),"
        " 'ours': os.listdir(os.environ['PYTHONPATH'] + '/adapters')}))",
    )
    words = ("merge", "--base", "base", "--adapter", "adapter", "--export", "x", "--python", looked, "--json")
    told = json.loads(gateway("adapters", *words, cwd=desk).stdout)
    assert told["seen"] == ["adapters"]
    assert "merge" in told["ours"]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print(json.dumps({'phase': 'Failed', 'reason': 'the disk is full'})); sys.exit(1)", "the disk is full"),
        ("sys.exit('Segmentation fault')", "ended with status 1:\nSegmentation fault"),
        ("os.abort()", "ended with status -6:\nit printed nothing"),
        ("pass", "ended with status 0:\nit printed nothing"),
        ("print('no JSON', flush=True)", "says 'no JSON', which is not its progress"),
    ],
)  # fmt: skip
def test_a_program_that_fails_is_a_sentence(desk: Path, program: str, reason: str) -> None:
    failing = python(desk, program)
    words = ("merge", "--base", "base", "--adapter", "adapter", "--export", "x", "--python", failing)
    ran = gateway("adapters", *words, cwd=desk)
    assert ran.returncode == 1
    assert reason in ran.stderr
    assert "Traceback" not in ran.stderr


def test_progress_and_notes_go_to_stderr(desk: Path) -> None:
    telling = python(
        desk,
        "for line in ({'phase': 'Merging', 'done': 1, 'total': 2, 'unit': 'bytes'}, {'phase': 'Note', 'text': 'mind'},"
        " {'phase': 'Done', 'path': 'x'}): print(json.dumps(line), flush=True)",
    )
    words = ("merge", "--base", "base", "--adapter", "adapter", "--export", "x", "--python", telling, "--json")
    ran = gateway("adapters", *words, cwd=desk)
    assert ran.stderr == "Merging …\nnote: mind\n"
    assert json.loads(ran.stdout) == {"path": "x"}
