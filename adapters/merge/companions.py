"""What a model's folder holds beside its weights: configuration, tokenizer, chat template, licence.

The tokenizer is the adapter's where it brings one, because it was trained with that; so is the chat template. Pickles,
code and model cards stay behind.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.merge.checkpoint import CONFIG
from adapters.merge.errors import MergeError

TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION = "generation_config.json"

# One of these is a whole tokenizer, with the others beside it.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_TOKENIZER = (
    *_VOCABULARIES,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.json",
    TEMPLATE,
)
_MODEL = (GENERATION, "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_LEGAL = ("LICENSE*", "NOTICE*", "USE_POLICY*")
_MAX_JSON = 256 << 20  # the largest tokenizer.json has 35 MB


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose files the merged model got: "base model", or the adapter's folder; `template` None: there is none."""

    tokenizer: str
    template: str | None


def write_companions(base: Path, adapters: Sequence[Path], folder: Path, config: Mapping[str, object] | None) -> Origin:
    """Writes them into `folder`. `config`: the fields that differ from the base model's; None where it is written.

    The last of several adapters that brings a tokenizer or a template decides. Raises MergeError.
    """
    if config is not None:
        _write_json(folder / CONFIG, {**_json(base / CONFIG), **config})
        _copy(base, folder, [name for name in _MODEL if (base / name).is_file()])
    legal = {path.name for pattern in _LEGAL for path in base.glob(pattern) if path.is_file()}
    _copy(base, folder, sorted(legal))
    for adapter in adapters:
        _refuse_links(adapter)
    bringing = [adapter for adapter in adapters if _has_tokenizer(adapter)]
    source = bringing[-1] if bringing else base
    for name in _TOKENIZER:  # what peft's way may have written
        (folder / name).unlink(missing_ok=True)
    _copy(source, folder, [name for name in _TOKENIZER if (source / name).is_file()])
    templated = [adapter for adapter in adapters if _has_template(adapter)]
    template = templated[-1] if templated else base if _has_template(base) else None
    if template is not None and template != source:
        _put_template(template, folder)
    return Origin(_called(source, base), None if template is None else _called(template, base))


def tokens_of(folder: Path) -> int | None:
    """How many rows the embedding must have for the tokenizer in `folder`; None where that is not said plainly."""
    if not (folder / "tokenizer.json").is_file():
        return None
    content = _json(folder / "tokenizer.json")
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # of pieces with their scores, in the order of their numbers
        vocabulary = {"": len(vocabulary) - 1}
    ids = [*vocabulary.values()] if isinstance(vocabulary, dict) else []
    ids += [entry.get("id") for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    return max((number for number in ids if isinstance(number, int)), default=-1) + 1


def _called(source: Path, base: Path) -> str:
    return "base model" if source == base else str(source)


def _refuse_links(adapter: Path) -> None:
    """An adapter's folder may come from a stranger, and a link in it may point to anything on this machine."""
    if links := [name for name in _TOKENIZER if (adapter / name).is_symlink()]:
        raise MergeError(f"{adapter / links[0]} is a symbolic link: copy the file itself there (cp -L)")


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _VOCABULARIES)


def _has_template(folder: Path) -> bool:
    if (folder / TEMPLATE).is_file():
        return True
    settings = folder / TOKENIZER_CONFIG
    return settings.is_file() and bool(_json(settings).get("chat_template"))


def _put_template(source: Path, folder: Path) -> None:
    """Gives the tokenizer in `folder` the template of another folder; the file goes before what its settings say."""
    if (source / TEMPLATE).is_file():
        _copy(source, folder, [TEMPLATE])
        return
    template = _json(source / TOKENIZER_CONFIG)["chat_template"]
    if isinstance(template, str):
        (folder / TEMPLATE).write_text(template, encoding="utf-8")
        return
    (folder / TEMPLATE).unlink(missing_ok=True)
    settings = _json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    _write_json(folder / TOKENIZER_CONFIG, {**settings, "chat_template": template})


def _copy(source: Path, folder: Path, names: Iterable[str]) -> None:
    for name in names:
        try:
            shutil.copyfile(source / name, folder / name)
        except OSError as error:
            raise MergeError(f"{source / name} cannot be copied ({error.strerror})") from error


def _json(file: Path) -> dict[str, object]:
    try:
        with file.open("rb") as stream:
            content = json.loads(stream.read(_MAX_JSON))
    except OSError as error:
        raise MergeError(f"{file} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise MergeError(f"{file} is no valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise MergeError(f"{file} is not a JSON object")
    return content


def _write_json(file: Path, content: Mapping[str, object]) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
