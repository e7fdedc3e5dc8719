"""Training data in people's files: read whole, or refused with the place of every mistake."""

import json
from pathlib import Path

import pytest

from adapters.data import formats
from adapters.data.formats import DataError, load

DATA = Path(formats.__file__).parent


def written(folder: Path, *records: object, name: str = "data.json") -> Path:
    path = folder / name
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("[" + ",".join(lines) + "]" if name.endswith(".json") else "\n".join(lines))
    return path


def turns(*texts: str) -> dict[str, object]:
    return {"conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]}


def spoken(path: Path) -> list[list[tuple[str, str]]]:
    return [[(message["role"], message["content"]) for message in row.messages] for row in load(path)]


@pytest.mark.parametrize(
    ("name", "effect"), [("pirate.alpaca.json", "Arr, matey!"), ("json_answers.sharegpt.json", '{"answer": ')]
)
def test_every_answer_of_the_sample_sets_has_the_effect_that_is_to_be_learned(name: str, effect: str) -> None:
    rows = load(DATA / name)
    assert 24 <= len(rows) <= 40
    answers = [message["content"] for row in rows for message in row.messages if message["role"] == "assistant"]
    assert all(answer.startswith(effect) for answer in answers)
    if effect.startswith("{"):
        assert all(list(json.loads(answer)) == ["answer"] for answer in answers)


def test_alpaca_puts_the_input_below_the_instruction_and_system_and_history_before(tmp_path: Path) -> None:
    record = {
        "instruction": "Translate.",
        "input": "Hallo",
        "output": "Hello",
        "system": "Be brief.",
        "history": [["Hi", "Hi!"]],
    }
    assert spoken(written(tmp_path, record)) == [
        [
            ("system", "Be brief."),
            ("user", "Hi"),
            ("assistant", "Hi!"),
            ("user", "Translate.\nHallo"),
            ("assistant", "Hello"),
        ]
    ]


def test_alpaca_does_without_its_optional_fields(tmp_path: Path) -> None:
    bare = {"instruction": "Hi", "output": "Hello"}
    nulls = {**bare, "input": None, "system": None, "history": None}
    assert spoken(written(tmp_path, bare, nulls)) == [[("user", "Hi"), ("assistant", "Hello")]] * 2


@pytest.mark.parametrize(("asks", "answers"), [("human", "gpt"), ("user", "assistant"), ("user", "model")])
def test_sharegpt_knows_the_names_that_roles_go_by(tmp_path: Path, asks: str, answers: str) -> None:
    record = {"conversations": [{"from": asks, "value": "Hi"}, {"from": answers, "value": "Hello"}]}
    assert spoken(written(tmp_path, record)) == [[("user", "Hi"), ("assistant", "Hello")]]


def test_a_system_message_among_the_turns_goes_before_the_field(tmp_path: Path) -> None:
    record = turns("Hi", "Hello")
    record["conversations"].insert(0, {"from": "system", "value": "inner"})  # type: ignore[attr-defined]
    path = written(tmp_path, {**record, "system": "outer"}, {**turns("Hi", "Hello"), "system": "outer"})
    assert [row[0] for row in spoken(path)] == [("system", "inner"), ("system", "outer")]


def test_json_lines_may_mix_the_formats_and_have_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = written(tmp_path, turns("Hi", "Hello"), {"instruction": "a", "output": "b"}, name="data.jsonl")
    path.write_text("\ufeff" + path.read_text().replace("\n", "\n\n") + "\n", encoding="utf-8")
    assert [row.place for row in load(path)] == ["data.jsonl, line 1", "data.jsonl, line 3"]


MISTAKES = {
    "not an object": ("text", "a row must be an object, this is a string"),
    "another format": ({"prompt": "a", "completion": "b"}, "only `completion`, `prompt`"),
    "no output": ({"instruction": "a"}, "`output` must be a string, this is null or missing"),
    "an output that is a list": ({"instruction": "a", "output": ["b"]}, "`output` must be a string, this is a list"),
    "an empty output": ({"instruction": "a", "output": " "}, "`output` is empty"),
    "a history that is no list": ({"instruction": "a", "output": "b", "history": "c"}, "list of [question, answer]"),
    "a history of no pairs": ({"instruction": "a", "output": "b", "history": [["c"]]}, "`history` 1 must be"),
    "turns that are no list": ({"conversations": {}}, "`conversations` must be a list, this is an object"),
    "no turns": (turns(), "no answer to learn"),
    "a question without an answer": (turns("a", "b", "c"), "no answer to learn"),
    "two questions in a row": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}]},
        "message 2 is of the user, where the assistant must speak",
    ),
    "an unknown role": ({"conversations": [{"from": "tool", "value": "a"}]}, "turn 1: `from` is 'tool'; known are"),
    "a turn that is a string": ({"conversations": ["a"]}, "turn 1 must be an object with `from` and `value`"),
    "a turn without text": ({"conversations": [{"from": "human"}]}, "turn 1: `value` must be a string"),
    "pictures": ({**turns("a", "b"), "images": ["a.png"]}, "`images` isn't supported"),
    "preferences": ({**turns("a", "b"), "chosen": "b"}, "`chosen` isn't supported"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bad_row_is_named_with_its_place_and_what_is_wrong(tmp_path: Path, mistake: str) -> None:
    record, message = MISTAKES[mistake]
    with pytest.raises(DataError) as raised:
        load(written(tmp_path, turns("Hi", "Hello"), record))
    assert "data.json, row 2: " in str(raised.value)
    assert message in str(raised.value)


def test_all_bad_rows_are_reported_at_once_and_a_flood_of_them_is_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        load(written(tmp_path, turns("Hi", "Hello"), *[{}] * 50))
    lines = str(raised.value).splitlines()
    assert lines[0] == "50 of 51 rows can't be used:"
    assert lines[-1] == f"… and {50 - formats.MAX_SHOWN} more"
    assert len(lines) == formats.MAX_SHOWN + 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "data.json has no rows"),
        (b"", "data.json has no rows"),
        (b'[{"instruction": "a",\n "output": }]', "data.json, line 2: not JSON"),
        (b'{"instruction": "a", "output": "b"}\n{"instruction"', "data.json, line 2: not JSON"),
        (b"[" * 100_000, "data.json, line 1: not JSON"),
        ('[{"instruction": "ä"}]'.encode("latin-1"), "isn't UTF-8 (byte 18)"),
    ],
)
def test_a_file_that_is_no_data_is_refused_with_the_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as raised:
        load(path)
    assert message in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json can't be read: No such file"):
        load(tmp_path / "none.json")


def test_a_file_too_large_to_hold_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(formats.MAX_BYTES + 1)  # a hole: it takes no disk
    with pytest.raises(DataError, match="split it"):
        load(path)
