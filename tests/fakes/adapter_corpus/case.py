"""What a case of the corpus is, and how cases are made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from adapters import Code
from tests.fakes.adapter_corpus.craft import TINY, WEIGHTS, Craft, Dimensions, safetensors, with_header

# What vLLM 0.32 does with a case: it serves what was trained; it refuses (404 or 500); or it loads it without a word
# and answers with something else, or not at all. `unasked`: it would wait for ever.
Engine = Literal["serves", "refuses", "misserves", "unasked"]

Change = Callable[[Craft], None]


@dataclass(frozen=True)
class Case:
    """An adapter and its verdict on its base model with --max-lora-rank 16: the codes of its errors and warnings.

    What was trained is what peft answers with the same files, if it can load them whole, or else with those of the case
    `like`. `reads` is how the tokenizer beside the adapter reads a text. `stricter` is why an adapter is refused that
    vLLM serves rightly.
    """

    name: str
    what: str
    change: Change
    errors: frozenset[Code]
    warnings: frozenset[Code]
    engine: Engine
    stricter: str = ""
    like: str = ""
    reads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def write(self, folder: Path, dimensions: Dimensions = TINY) -> Path:
        craft = Craft(dimensions)
        self.change(craft)
        craft.write(folder)
        return folder


class Area:
    """Cases of one kind, and the ways to add one."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.cases: list[Case] = []

    def case(
        self,
        name: str,
        what: str,
        *errors: Code,
        engine: Engine,
        warnings: tuple[Code, ...] = (),
        stricter: str = "",
        like: str = "",
        reads: Mapping[str, tuple[int, ...]] | None = None,
    ) -> Callable[[Change], Change]:
        """Adds the adapter that the decorated function makes of a plain one."""

        def register(change: Change) -> Change:
            codes = frozenset(errors), frozenset(warnings)
            self.cases.append(Case(name, what, change, *codes, engine, stricter, like, reads or {}))
            return change

        return register

    def configured(
        self, name: str, what: str, *errors: Code, engine: Engine, stricter: str = "", like: str = "", **fields: object
    ) -> None:
        """A case whose tensors are plain and whose configuration has these fields."""

        def apply(craft: Craft) -> None:
            craft.config |= fields

        self.case(name, what, *errors, engine=engine, stricter=stricter, like=like)(apply)

    def without(self, name: str, what: str, field_name: str, *errors: Code, engine: Engine, like: str = "") -> None:
        """A case whose configuration lacks a field."""

        def apply(craft: Craft) -> None:
            del craft.config[field_name]

        self.case(name, what, *errors, engine=engine, like=like)(apply)

    def filed(
        self,
        name: str,
        what: str,
        *errors: Code,
        engine: Engine,
        files: Mapping[str, bytes],
        warnings: tuple[Code, ...] = (),
        stricter: str = "",
    ) -> None:
        """A case with these files, in place of or beside the plain ones."""

        def apply(craft: Craft) -> None:
            craft.files |= files

        self.case(name, what, *errors, engine=engine, warnings=warnings, stricter=stricter)(apply)

    def changed(
        self, name: str, what: str, *errors: Code, engine: Engine, after: Callable[[Path], None], stricter: str = ""
    ) -> None:
        """A case whose folder is changed after it was written."""

        def apply(craft: Craft) -> None:
            craft.after = after

        self.case(name, what, *errors, engine=engine, stricter=stricter)(apply)

    def rewritten(self, name: str, what: str, *errors: Code, engine: Engine, change: Callable[[bytes], bytes]) -> None:
        """A case whose weights' file is the plain one, changed."""

        def apply(craft: Craft) -> None:
            craft.files[WEIGHTS] = change(safetensors(craft.tensors))

        self.case(name, what, *errors, engine=engine)(apply)

    def header(self, name: str, what: str, *errors: Code, engine: Engine, data: bytes, payload: bytes = b"") -> None:
        """A case whose weights' file has this header and payload."""
        self.filed(name, what, *errors, engine=engine, files={WEIGHTS: with_header(data, payload)})
