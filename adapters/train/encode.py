"""Turns conversations into tokens with the model's own chat template, and marks which of them are learned.

Only what the assistant says is learned, its end-of-turn token included, else the model would never stop; not the
prompt, and not what the template puts after the end of the turn. This needs no marks in the template: the text of a
turn is what the template adds between "messages before it, and the assistant to speak" and "messages up to it".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from adapters.data.formats import DataError, Message, Row

NOT_LEARNED = -100
"""The label that torch's cross entropy leaves out."""


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens, and for each the label to learn or NOT_LEARNED."""

    tokens: tuple[int, ...]
    labels: tuple[int, ...]


def encode(tokenizer: Any, row: Row, max_tokens: int) -> list[Example]:
    """The examples of one row: one, or one for each answer where the template rewrites earlier turns.

    Some templates do (a reasoning model's drops old thoughts), and then no single text shows every answer as it was
    given. `tokenizer` is a transformers tokenizer that knows character offsets. Raises DataError, with the row's
    place, for a row that is too long: cutting it would teach an answer without its question.
    """
    answers = [index for index, message in enumerate(row.messages) if message["role"] == "assistant"]
    before = [_render(tokenizer, row.messages[:index], speak=True) for index in answers]
    upto = [_render(tokenizer, row.messages[: index + 1], speak=False) for index in answers]
    if not all(text.startswith(prompt) for prompt, text in zip(before, upto, strict=True)):
        raise DataError(f"{row.place}: the model's chat template doesn't begin an answer as its generation prompt does")
    spans = [_answer(tokenizer, prompt, text) for prompt, text in zip(before, upto, strict=True)]
    if all(later.startswith(earlier) for earlier, later in pairwise(upto)):
        examples = [_example(tokenizer, upto[-1], spans)]
    else:
        examples = [_example(tokenizer, text, [span]) for text, span in zip(upto, spans, strict=True)]
    for example in examples:
        if len(example.tokens) > max_tokens:
            raise DataError(
                f"{row.place}: {len(example.tokens)} tokens, more than {max_tokens}: shorten it or raise --max-tokens"
            )
    return examples


def _render(tokenizer: Any, messages: Sequence[Message], *, speak: bool) -> str:
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=speak)
    return text


def _answer(tokenizer: Any, prompt: str, text: str) -> tuple[int, int]:
    """Where in `text` the last answer stands, up to the end of its turn."""
    end = text.rfind(tokenizer.eos_token, len(prompt))
    return len(prompt), len(text) if end < 0 else end + len(tokenizer.eos_token)


def _example(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]]) -> Example:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens: list[int] = encoded["input_ids"]
    labels = [
        token if any(first <= start < end <= last for first, last in spans) else NOT_LEARNED
        for token, (start, end) in zip(tokens, encoded["offset_mapping"], strict=True)
    ]
    return Example(tuple(tokens), tuple(labels))
