"""What lies beside an adapter is read as whoever trained it left it, and a hostile one does no more than be doubted."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import AdapterStore, BaseModel, Code, RefusedError, check
from adapters.files import ADAPTER_FILES, BESIDE
from adapters.tokenizer import Tokenizer
from tests.fakes.adapter_corpus import TINY, Case, Craft, write_base
from tests.fakes.adapter_corpus.craft import TEMPLATE, tokenizer_files
from tests.fakes.adapter_corpus.tokenizers import AREA

BEYOND = TINY.vocabulary


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return BaseModel.read(write_base(tmp_path_factory.mktemp("base") / TINY.name))


def codes(files: dict[str, bytes], base: BaseModel, folder: Path) -> list[Code]:
    craft = Craft(TINY)
    craft.files |= files
    craft.write(folder)
    return [finding.code for finding in check(folder, base, max_lora_rank=16).findings]


def as_json(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, []),
        ({"tokenizer_config.json": as_json(eos_token="w1", pad_token="w1")}, []),
        ({"tokenizer_config.json": as_json(added_tokens_decoder={"5": {"content": "<x>"}})}, [Code.TOKENS]),
        ({"tokenizer_config.json": as_json(added_tokens_decoder={"1": {"content": "w0"}})}, [Code.TOKENIZER]),
        ({"tokenizer_config.json": as_json(extra_special_tokens=["<x>"])}, [Code.TOKENS]),
        ({"tokenizer_config.json": as_json(extra_special_tokens={"image": "<x>"})}, [Code.TOKENS]),
        ({"tokenizer_config.json": as_json(additional_special_tokens=[{"content": "w5"}])}, []),
        ({"special_tokens_map.json": as_json(eos_token={"content": "w2"})}, [Code.ENDING]),
        ({"added_tokens.json": as_json(**{"<x>": BEYOND})}, [Code.VOCABULARY]),
        ({"added_tokens.json": as_json(**{"<x>": BEYOND - 1})}, [Code.TOKENS]),
        ({"tokenizer_config.json": as_json(chat_template=TEMPLATE + "\n")}, []),
        ({"tokenizer_config.json": as_json(chat_template="other")}, [Code.CHAT_TEMPLATE]),
        (
            {"tokenizer_config.json": as_json(chat_template=[{"name": "default", "template": "other"}])},
            [Code.CHAT_TEMPLATE],
        ),
        ({"tokenizer_config.json": as_json(chat_template=[{"name": "tool_use", "template": "other"}])}, []),
        ({"chat_template.jinja": b"<x> {{ messages }}"}, [Code.CHAT_TEMPLATE]),
        ({"tokenizer_config.json": b"[]"}, [Code.TOKENS]),
        ({"added_tokens.json": as_json(**{f"<{i}>": i for i in range(30_000)})}, [Code.TOKENS]),
        ({"tokenizer.json": b'{"added_tokens": ' + b"[" * 100_000}, []),
        ({"tokenizer.json": b'{"added_tokens": [{"id": ' + b"9" * 10_000 + b', "content": "<x>"}]}'}, []),
    ],
)
def test_files_of_older_and_newer_versions_and_of_strangers_are_understood(
    files: dict[str, bytes], found: list[Code], base: BaseModel, tmp_path: Path
) -> None:
    assert codes(files, base, tmp_path / "adapter") == found


def test_a_token_that_the_base_models_vocabulary_has_needs_no_place_of_its_own(base: BaseModel, tmp_path: Path) -> None:
    files = {"tokenizer_config.json": as_json(additional_special_tokens=["w77"], unk_token="w3")}
    assert codes(files, base, tmp_path / "adapter") == []


def test_the_engine_also_ends_where_the_generation_configuration_says(tmp_path: Path) -> None:
    folder = write_base(tmp_path / TINY.name)
    files = {"tokenizer_config.json": as_json(eos_token="w2")}
    assert codes(files, BaseModel.read(folder), tmp_path / "one") == [Code.ENDING]
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert codes(files, BaseModel.read(folder), tmp_path / "two") == []


def test_without_a_tokenizer_of_the_base_model_nothing_is_compared(tmp_path: Path) -> None:
    folder = write_base(tmp_path / TINY.name, weights=False)
    files = tokenizer_files(TINY, {"<x>": BEYOND}, template="other")
    assert codes(files, BaseModel.read(folder), tmp_path / "adapter") == []


def test_what_is_no_plain_file_beside_an_adapter_is_not_looked_at(base: BaseModel, tmp_path: Path) -> None:
    craft = Craft(TINY)
    craft.write(tmp_path / "adapter")
    os.mkfifo(tmp_path / "adapter" / "tokenizer.json")
    (tmp_path / "adapter" / "chat_template.jinja").symlink_to("/etc/hostname")
    (tmp_path / "adapter" / "added_tokens.json").mkdir()
    assert check(tmp_path / "adapter", base, max_lora_rank=16).findings == ()


@pytest.mark.parametrize("case", [case for case in AREA.cases if case.errors], ids=lambda case: case.name)
def test_an_import_judges_what_lies_beside_and_the_store_keeps_the_adapter_alone(
    case: Case, base: BaseModel, tmp_path: Path
) -> None:
    store = AdapterStore.open(tmp_path / "store")

    def accept(copy: Path) -> None:
        if errors := check(copy, base, max_lora_rank=16).errors:
            raise RefusedError(*errors)

    with pytest.raises(RefusedError) as refused:
        store.add(case.write(tmp_path / "adapter"), accept)
    assert {finding.code for finding in refused.value.findings} == case.errors
    craft = Craft(TINY)
    craft.files |= tokenizer_files(TINY)
    craft.write(tmp_path / "right")
    assert sorted(os.listdir(store.add(tmp_path / "right", accept).path)) == sorted(ADAPTER_FILES)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["w1", "<x>", "content", "default"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["content", "id", "name", "template", "7", "w2"]), inner, max_size=3)
    ),
    max_leaves=6,
)
fields = st.sampled_from(
    ["added_tokens_decoder", "added_tokens", "eos_token", "pad_token", "extra_special_tokens", "chat_template", "<x>"]
)
contents = st.binary(max_size=60) | st.dictionaries(fields, anything, max_size=4).map(lambda d: json.dumps(d).encode())


@given(st.dictionaries(st.sampled_from(BESIDE), contents))
def test_any_content_of_these_files_is_read_or_refused(files: dict[str, bytes]) -> None:
    try:
        found = Tokenizer.read(files.get)
    except ValueError:
        return
    assert (found is None) is (not files)
    if found is not None:
        assert all(isinstance(token, str) for token in found.tokens)
