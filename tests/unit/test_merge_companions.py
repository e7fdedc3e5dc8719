"""Beside its weights a merged model has the tokenizer and the chat template that it was trained with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters.merge.companions import Origin, tokens_of, write_companions
from adapters.merge.errors import MergeError
from tests.fakes.adapter_corpus import TINY, write_base
from tests.fakes.adapter_corpus.craft import tokenizer_files


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = write_base(tmp_path / "base")
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    for name in ("LICENSE", "README.md", "modeling_tiny.py", "training_args.bin"):
        (folder / name).write_text("x")
    return folder


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    (tmp_path / "merged").mkdir()
    return tmp_path / "merged"


def adapter(folder: Path, **files: bytes) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def test_a_bare_adapter_gets_all_of_the_base_model(base: Path, merged: Path, tmp_path: Path) -> None:
    bare = adapter(tmp_path / "bare", training_args__bin=b"pickle", README__md=b"card")
    assert write_companions(base, [bare], merged, {"vocab_size": 7}) == Origin("base model", "base model")
    assert {path.name for path in merged.iterdir()} == {
        "config.json", "generation_config.json", "LICENSE", *tokenizer_files(TINY)
    }  # fmt: skip
    assert json.loads((merged / "config.json").read_text()) == TINY.config() | {"vocab_size": 7}


def test_an_adapter_s_own_tokenizer_and_template_go_before_the_base_model_s(
    base: Path, merged: Path, tmp_path: Path
) -> None:
    own = tokenizer_files(TINY, added={"<new>": TINY.vocabulary}, template="{{ 'mine' }}")
    bringing = adapter(tmp_path / "own", **{name.replace(".", "__"): data for name, data in own.items()})
    bare = adapter(tmp_path / "bare")
    assert write_companions(base, [bringing, bare], merged, {}) == Origin(str(bringing), str(bringing))
    for name, data in own.items():
        assert (merged / name).read_bytes() == data
    assert tokens_of(merged) == TINY.vocabulary + 1
    assert tokens_of(base) == TINY.vocabulary


@pytest.mark.parametrize("where", ["a file", "the settings"])
def test_an_adapter_that_brings_only_a_template_changes_only_that(
    base: Path, merged: Path, tmp_path: Path, where: str
) -> None:
    if where == "a file":
        only = adapter(tmp_path / "only", chat_template__jinja=b"{{ 'mine' }}")
    else:
        settings = json.dumps({"chat_template": "{{ 'mine' }}"}).encode()
        only = adapter(tmp_path / "only", tokenizer_config__json=settings)
    assert write_companions(base, [only], merged, {}) == Origin("base model", str(only))
    assert (merged / "chat_template.jinja").read_text() == "{{ 'mine' }}"
    assert (merged / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert (merged / "tokenizer_config.json").read_bytes() == (base / "tokenizer_config.json").read_bytes()


def test_several_named_templates_stay_several(base: Path, merged: Path, tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
    settings = json.dumps({"chat_template": templates}).encode()
    write_companions(base, [adapter(tmp_path / "only", tokenizer_config__json=settings)], merged, {})
    assert not (merged / "chat_template.jinja").exists()
    told = json.loads((merged / "tokenizer_config.json").read_text())
    assert (told["chat_template"], told["eos_token"]) == (templates, "w1")


def test_a_model_without_a_template_is_said_to_have_none(base: Path, merged: Path) -> None:
    (base / "chat_template.jinja").unlink()
    assert write_companions(base, [], merged, {}).template is None


def test_a_link_in_an_adapter_is_not_followed(base: Path, merged: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    stranger = adapter(tmp_path / "stranger")
    (stranger / "tokenizer.json").symlink_to(secret)
    with pytest.raises(MergeError, match="is a symbolic link"):
        write_companions(base, [stranger], merged, {})


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b'{"a":' * 100_000])
def test_a_broken_file_is_named(base: Path, merged: Path, content: bytes) -> None:
    (base / "config.json").write_bytes(content)
    with pytest.raises(MergeError, match=r"config\.json is no"):
        write_companions(base, [], merged, {})
