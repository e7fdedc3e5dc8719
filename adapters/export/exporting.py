"""An export from its beginning to its end: merge, convert, hand over."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from adapters.export.chattemplate import Message, Pieces, TemplateError, pieces_of
from adapters.export.converter import TYPES, convert, find_converter
from adapters.export.gguf import Gguf
from adapters.export.modelfile import modelfile
from adapters.export.ollama import NewModel, Ollama
from adapters.merge.errors import MergeError
from adapters.merge.folder import exported, sync, workplace
from adapters.merge.merging import Merged, Request, merge_into
from adapters.merge.progress import Tell, note

GGUF = "model.gguf"
MODELFILE = "Modelfile"
OWN_TYPES: Mapping[str, str] = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
"""What weights of a dtype are in a GGUF file that is not to lose anything."""


@dataclass(frozen=True, slots=True)
class Template:
    """What an Ollama model is told of conversations. `go` None: `why`; then the GGUF's own template serves."""

    go: str | None
    why: str
    stops: tuple[str, ...]


def to_folder(request: Request, target: Path, tell: Tell) -> dict[str, object]:
    """The merged model as a folder that `ollama create -f Modelfile` takes, too. Raises MergeError."""
    with exported(target) as folder:
        merged = merge_into(request, folder, tell)
        template = read_template(folder, None, tell)
        (folder / MODELFILE).write_text(modelfile(".", template.go, template.stops), encoding="utf-8")
    return {"path": str(target), **_told(merged, template)}


def to_gguf(request: Request, target: Path, kind: str | None, converter: Path | None, tell: Tell) -> dict[str, object]:
    """The merged model as one GGUF file; `kind`: one of TYPES, None: what keeps every bit. Raises MergeError."""
    if target.is_dir():
        raise MergeError(f"{target} is a folder: give the name of the file, such as {target / 'model.gguf'}")
    with workplace(target) as place:
        merged, found = _converted(request, place, kind, target.stem, converter, tell)
        file = place / GGUF
        file.chmod(0o644)
        sync(file)
        try:
            os.link(file, target)  # never over a file that came to be there meanwhile
        except FileExistsError as error:
            raise MergeError(f"{target} exists: choose another name, or remove it first") from error
        sync(target.parent)
    return {"path": str(target), "gguf_bytes": target.stat().st_size, "tensors": found.tensors, **merged.as_json()}


def to_ollama(
    request: Request,
    server: Ollama,
    name: str,
    kind: str | None,
    replace: bool,
    keep: Path | None,
    converter: Path | None,
    tell: Tell,
) -> dict[str, object]:
    """The merged model in an Ollama server, under `name`; `keep`: a folder for the GGUF file and its Modelfile.

    `kind`: one of TYPES, or another of Ollama's own that the server quantises to. Raises MergeError.
    """
    version = server.version()
    if not replace and server.has(name):
        raise MergeError(f"Ollama has a model {name} already: choose another --name, or --replace it")
    with _kept(keep) as place:
        ours = kind is None or kind in TYPES
        merged, found = _converted(request, place, kind if ours else None, name, converter, tell)
        template = read_template(place / "merged", found, tell)
        (place / MODELFILE).write_text(modelfile(f"./{GGUF}", template.go, template.stops), encoding="utf-8")
        model = NewModel(name, place / GGUF, template.go, template.stops, None if ours else kind)
        server.create(model, tell)
        size = (place / GGUF).stat().st_size
        _remove(place / "merged")
    kept = None if keep is None else str(keep)
    return {"path": kept, "ollama": version, "name": name, "gguf_bytes": size, **_told(merged, template)}


def read_template(folder: Path, file: Gguf | None, tell: Tell) -> Template:
    """What Ollama is told of the model in `folder`; `file`: the GGUF file that was made of it, where there is one."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    stops = _stops(folder, tokenizer)
    if not tokenizer.chat_template:
        return Template(None, "the model has no chat template", stops)
    try:
        pieces = pieces_of(str(tokenizer.chat_template), _renderer(tokenizer))
    except TemplateError as error:
        note(
            tell,
            f"The model's chat template cannot be written in Ollama's language: {error}. Ollama uses the template in"
            " the GGUF file instead; versions that cannot (before they served through llama.cpp) answer badly.",
        )
        return Template(None, str(error), stops)
    adds = file.adds_bos if file is not None else tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    return Template(_without_bos(pieces, tokenizer, adds).as_go(), "", stops)


def _without_bos(pieces: Pieces, tokenizer: Any, adds: bool) -> Pieces:
    return pieces.without(tokenizer.bos_token) if adds and tokenizer.bos_token else pieces


def _renderer(tokenizer: Any) -> Callable[[Any], str]:
    def render(messages: list[Message]) -> str:
        try:
            text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:
            raise TemplateError(f"it does not take this conversation ({error})") from error
        return text

    return render


def _stops(folder: Path, tokenizer: Any) -> tuple[str, ...]:
    """The tokens that end an answer, as text."""
    ends = tokenizer.eos_token_id
    if (folder / "generation_config.json").is_file():
        ends = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id or ends
    numbers = ends if isinstance(ends, list) else [ends]
    return tuple(tokenizer.convert_ids_to_tokens(number) for number in numbers if number is not None)


def _converted(
    request: Request, place: Path, kind: str | None, name: str, converter: Path | None, tell: Tell
) -> tuple[Merged, Gguf]:
    """Merges into `place`/merged and converts into `place`/model.gguf."""
    program = find_converter(converter, tell)
    folder, file = place / "merged", place / GGUF
    folder.mkdir()
    merged = merge_into(request, folder, tell, spare=_size(request.base))
    convert(program, folder, file, kind or OWN_TYPES[merged.dtype], name, tell)
    return merged, Gguf.read(file)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@contextmanager
def _kept(target: Path | None) -> Iterator[Path]:
    if target is not None:
        with exported(target) as place:
            yield place
        return
    with tempfile.TemporaryDirectory(prefix="lora-gateway-export-") as scratch:
        yield Path(scratch)


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def _told(merged: Merged, template: Template) -> dict[str, object]:
    return {**merged.as_json(), "go_template": template.go is not None, "stops": list(template.stops)}
