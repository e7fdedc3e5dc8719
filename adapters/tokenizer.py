"""How the tokenizer and the chat template beside an adapter differ from the base model's.

vLLM 0.32 never reads them: it cuts every prompt with the base model's tokenizer and lays out every conversation with
the base model's template. An adapter that was trained with others is then asked in another way than it learned.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adapters.base_model import BaseModel
from adapters.files import BESIDE, open_file
from adapters.findings import Code, Finding, RefusedError, quote
from adapters.strict_json import StrictJsonError, loads

_CONFIG, _SPECIAL, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_TEMPLATE, _WHOLE = "chat_template.jinja", "tokenizer.json"
_GENERATION = "generation_config.json"

_MAX_BYTES = 64 << 20  # of a file of the base model; a tokenizer.json of 256,000 tokens has 34 MB
_MAX_ADDED = 1 << 20  # characters of a tokenizer.json that list its added tokens
_MAX_TOKENS = 20_000
_MERGE = "merge it into the base model"

Read = Callable[[str], bytes | None]  # the content of a file by its name; None: there is none to be read


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """What a folder says of its tokenizer: the tokens beyond plain text, with their numbers where these are told."""

    tokens: Mapping[str, int | None]
    end: str | None  # of an answer
    padding: str | None
    template: str | None  # of a conversation
    whole: bytes  # tokenizer.json

    @classmethod
    def read(cls, read: Read) -> "Tokenizer | None":
        """None where there is nothing to read. Raises ValueError."""
        files = {name: data for name in BESIDE if (data := read(name)) is not None}
        if not files:
            return None
        config = _object(_CONFIG, files.get(_CONFIG))
        special = _object(_SPECIAL, files.get(_SPECIAL))
        whole = files.get(_WHOLE, b"")
        tokens: dict[str, int | None] = dict.fromkeys([*_special_tokens(special), *_special_tokens(config)])
        tokens |= dict(_numbered(config, _object(_ADDED, files.get(_ADDED)), _listed(whole)))
        if len(tokens) > _MAX_TOKENS:
            raise ValueError(f"they list {len(tokens)} tokens beyond plain text")
        end, padding = (_token(config.get(name, special.get(name))) for name in ("eos_token", "pad_token"))
        return cls(tokens, end, padding, _template(files.get(_TEMPLATE), config), whole)

    def knows(self, token: str) -> bool:
        """True also where it could not be told."""
        return token in self.tokens or not self.whole or json.dumps(token, ensure_ascii=False).encode() in self.whole


def compare(folder: int, base: BaseModel) -> Iterator[Finding]:
    """Holds what lies beside the adapter in the folder behind the descriptor against the base model's folder."""
    if base.folder is None:
        return
    try:
        ours = Tokenizer.read(partial(_read_beside, folder))
        theirs = Tokenizer.read(partial(_read_file, base.folder)) if ours is not None else None
    except ValueError as error:
        remedy = "see that tokenizer files are as transformers wrote them, beside the adapter and in the base model"
        yield Finding(Code.TOKENS, f"the tokenizers were not compared: {error}", remedy, "warning")
        return
    if ours is not None and theirs is not None:
        yield from _tokens(ours, theirs, base)
        yield from _end(ours, theirs, _end_numbers(base.folder))
        yield from _templates(ours, theirs, base)


def _tokens(ours: Tokenizer, theirs: Tokenizer, base: BaseModel) -> Iterator[Finding]:
    renumbered: list[str] = []
    beyond: list[str] = []
    needed: list[str] = []
    unknown: list[str] = []
    for token, number in ours.tokens.items():
        if (known := theirs.tokens.get(token)) is not None and number is not None:
            renumbered += [token] if number != known else []
        elif not theirs.knows(token) and token != ours.padding:  # no engine ever sees padding
            outside = number is not None and base.vocabulary is not None and number >= base.vocabulary
            (beyond if outside else needed if token in (ours.template or "") else unknown).append(token)
    if renumbered:
        yield Finding(
            Code.TOKENIZER,
            f"the adapter's tokenizer gives {_some(renumbered)} another number than that of {base.name}",
            "use the base model it was trained on",
        )
    if beyond:
        yield Finding(
            Code.VOCABULARY,
            f"the adapter was trained with {_some(beyond)}, and {base.name} has {base.vocabulary} tokens",
            f"train without added tokens, or {_MERGE} with its own vocabulary",
        )
    if needed:
        yield Finding(
            Code.TOKENIZER,
            f"the adapter's chat template needs {_some(needed)}, which the tokenizer of {base.name} cuts into pieces",
            "serve the base model with the adapter's tokenizer (--tokenizer), or train with the base model's template",
        )
    if unknown:
        yield Finding(
            Code.TOKENS,
            f"the tokenizer of {base.name}, which vLLM uses, cuts {_some(unknown)} into pieces",
            "make sure that no prompt and no answer needs it, or serve the base model with the adapter's tokenizer "
            "(--tokenizer)",
            "warning",
        )


def _end(ours: Tokenizer, theirs: Tokenizer, numbers: frozenset[int]) -> Iterator[Finding]:
    if None in (ours.end, theirs.end) or ours.end == theirs.end or theirs.tokens.get(ours.end or "") in numbers:
        return
    yield Finding(
        Code.ENDING,
        f"the adapter ends its answers with {quote(ours.end)}, the engine at {quote(theirs.end)}",
        f'send "stop": [{quote(ours.end)}] with each request, or add its number to eos_token_id in the base model\'s '
        f"{_GENERATION}",
        "warning",
    )


def _templates(ours: Tokenizer, theirs: Tokenizer, base: BaseModel) -> Iterator[Finding]:
    if ours.template is None or ours.template.strip() == (theirs.template or "").strip():
        return
    lays_out = "lays out conversations otherwise" if theirs.template else "has no chat template"
    yield Finding(
        Code.CHAT_TEMPLATE,
        f"the adapter has a chat template of its own, and {base.name} {lays_out}",
        f"start the engine with --chat-template and the adapter's {_TEMPLATE}, or train with the base model's",
        "warning",
    )


def _read_beside(folder: int, name: str) -> bytes | None:
    try:
        with open_file(folder, name) as file:
            return file.read()
    except RefusedError:
        return None


def _read_file(folder: Path, name: str) -> bytes | None:
    try:
        with (folder / name).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError:
        return None
    return data if len(data) <= _MAX_BYTES else None


def _object(name: str, data: bytes | None) -> Mapping[str, object]:
    if data is None:
        return {}
    try:
        value = loads(data)
    except StrictJsonError as error:
        raise ValueError(f"{name} is no JSON of one meaning ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a JSON object")
    return value


def _token(value: object) -> str | None:
    """A token as transformers writes it: its text, or an object that has it."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _special_tokens(fields: Mapping[str, object]) -> Iterator[str]:
    for name, value in fields.items():
        if name in ("additional_special_tokens", "extra_special_tokens"):
            entries = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
        else:
            entries = [value] if name.endswith("_token") else []
        yield from filter(None, map(_token, entries))


def _numbered(
    config: Mapping[str, object], added: Mapping[str, object], listed: list[object]
) -> Iterator[tuple[str, int]]:
    """Tokens with their numbers, from the three places that older and newer versions of transformers keep them in."""
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        for number, entry in decoder.items():
            if (token := _token(entry)) and number.isascii() and number.isdigit() and len(number) < 10:
                yield token, int(number)
    for token, number in added.items():
        if type(number) is int:
            yield token, number
    for entry in listed:
        if isinstance(entry, dict) and (token := _token(entry)) and type(entry.get("id")) is int:
            yield token, entry["id"]


def _listed(whole: bytes) -> list[object]:
    """`added_tokens` of a tokenizer.json, which stands before the vocabulary: that has megabytes, and is not parsed."""
    begin = whole.find(b'"added_tokens"')
    begin = whole.find(b"[", begin) if begin >= 0 else -1
    if begin < 0:
        return []
    with suppress(ValueError, RecursionError):
        value, _ = json.JSONDecoder().raw_decode(whole[begin : begin + _MAX_ADDED].decode(errors="ignore"))
        if isinstance(value, list):
            return value
    return []


def _template(file: bytes | None, config: Mapping[str, object]) -> str | None:
    if file is not None:
        return file.decode(errors="replace")
    value = config.get("chat_template")
    if isinstance(value, list):
        named = (entry for entry in value if isinstance(entry, dict) and entry.get("name") == "default")
        value = next((entry.get("template") for entry in named), None)
    return value if isinstance(value, str) else None


def _end_numbers(folder: Path) -> frozenset[int]:
    """Of the tokens at which the engine ends an answer, beside its tokenizer's own."""
    try:
        value = _object(_GENERATION, _read_file(folder, _GENERATION)).get("eos_token_id")
    except ValueError:
        return frozenset()
    return frozenset(number for number in (value if isinstance(value, list) else [value]) if type(number) is int)


def _some(tokens: list[str]) -> str:
    more = f" (and {len(tokens) - 1} more)" if len(tokens) > 1 else ""
    return quote(tokens[0], 60) + more
