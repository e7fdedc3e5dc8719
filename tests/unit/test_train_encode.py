"""What of a conversation a training learns: what the assistant says, to the end of its turn, and nothing else."""

import re
from collections.abc import Sequence
from typing import Any

import pytest

from adapters.data.formats import DataError, Message, Row
from adapters.train.encode import NOT_LEARNED, Example, encode

EOS = "<end>"


class Tokenizer:
    """The part of a transformers tokenizer that is used, over a vocabulary of characters and one end-of-turn token."""

    eos_token = EOS

    def apply_chat_template(self, messages: Sequence[Message], *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        text = "".join(f"<{message['role']}>{message['content']}{EOS}\n" for message in messages)
        return text + "<assistant>" if add_generation_prompt else text

    def __call__(self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool) -> dict[str, Any]:
        assert not add_special_tokens
        assert return_offsets_mapping
        pieces = list(re.finditer(f"{EOS}|.|\n", text))
        return {
            "input_ids": [0 if piece[0] == EOS else ord(piece[0]) for piece in pieces],
            "offset_mapping": [piece.span() for piece in pieces],
        }


class Forgetful(Tokenizer):
    """As a reasoning model's template: thoughts of earlier turns are dropped."""

    def apply_chat_template(self, messages: Sequence[Message], *, tokenize: bool, add_generation_prompt: bool) -> str:
        last = None if add_generation_prompt else messages[-1]
        kept: list[Message] = [
            message if message is last else {**message, "content": re.sub(r"\(.*?\)", "", message["content"])}
            for message in messages
        ]
        return super().apply_chat_template(kept, tokenize=tokenize, add_generation_prompt=add_generation_prompt)


class Prefixing(Tokenizer):
    """A template whose generation prompt isn't how an answer begins."""

    def apply_chat_template(self, messages: Sequence[Message], *, tokenize: bool, add_generation_prompt: bool) -> str:
        text = super().apply_chat_template(messages, tokenize=tokenize, add_generation_prompt=add_generation_prompt)
        return text + "<think>" if add_generation_prompt else text


def row(*texts: str) -> Row:
    messages: list[Message] = [
        {"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(texts)
    ]
    return Row(tuple(messages), "data.json, row 3")


def learned(example: Example) -> str:
    assert all(label in (token, NOT_LEARNED) for token, label in zip(example.tokens, example.labels, strict=True))
    return "".join(EOS if label == 0 else chr(label) for label in example.labels if label != NOT_LEARNED)


def shown(example: Example) -> str:
    return "".join(EOS if token == 0 else chr(token) for token in example.tokens)


def test_the_answer_and_its_end_are_learned_and_the_rest_is_only_read() -> None:
    (example,) = encode(Tokenizer(), row("Hi", "Hello"), 100)
    assert shown(example) == f"<user>Hi{EOS}\n<assistant>Hello{EOS}\n"
    assert learned(example) == f"Hello{EOS}"


def test_every_answer_of_a_conversation_is_learned_in_one_example() -> None:
    (example,) = encode(Tokenizer(), row("a", "first", "b", "second"), 100)
    assert learned(example) == f"first{EOS}second{EOS}"


def test_a_template_that_rewrites_earlier_turns_gives_each_answer_an_example_with_its_own_past() -> None:
    first, second = encode(Forgetful(), row("a", "(hm)one", "b", "(so)two"), 100)
    assert learned(first) == f"(hm)one{EOS}"
    assert learned(second) == f"(so)two{EOS}"
    assert f"<assistant>one{EOS}" in shown(second)


def test_a_template_whose_answers_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(DataError, match="row 3: the model's chat template"):
        encode(Prefixing(), row("a", "b"), 100)


def test_a_row_that_is_too_long_is_refused_and_not_cut() -> None:
    (example,) = encode(Tokenizer(), row("a", "b"), 100)
    assert encode(Tokenizer(), row("a", "b"), len(example.tokens)) == [example]
    with pytest.raises(DataError, match=r"row 3: .* tokens, more than"):
        encode(Tokenizer(), row("a", "b"), len(example.tokens) - 1)
