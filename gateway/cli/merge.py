"""`gateway adapters merge` and `export`: an adapter becomes part of a model, for engines that take no adapters."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from adapters.merge.errors import MergeError
from adapters.merge.llamafactory import ExportFile, read_export
from gateway.cli import environment
from gateway.cli.options import AsJson
from gateway.cli.output import Failure, complain, print_json, say
from gateway.controlplane.hub import hub_cache, locate


class Dtype(StrEnum):
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class Target(StrEnum):
    hf = "hf"
    gguf = "gguf"
    ollama = "ollama"


Base = Annotated[str | None, typer.Option(help="The base model: its folder, or its name in the hub's cache.")]
Adapter = Annotated[
    list[Path] | None, typer.Option(help="The adapter's folder; several are merged one after another.", metavar="PATH")
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="An export file of LLaMA-Factory (YAML).", metavar="FILE")
]
DtypeOption = Annotated[Dtype | None, typer.Option(help="Of the merged weights; otherwise the base model's.")]
Python = Annotated[
    Path | None,
    typer.Option(help=f"Python with torch, transformers and peft; otherwise {environment.ENGINE}.", metavar="PATH"),
]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Do not compare its answers with base and adapter.")]


def merge(
    base: Base = None,
    adapter: Adapter = None,
    export: Annotated[
        Path | None, typer.Option(help="Where the merged model goes: a new folder.", metavar="PATH")
    ] = None,
    config: ConfigFile = None,
    dtype: DtypeOption = None,
    shard_size: Annotated[str | None, typer.Option(help="Of one file at most; otherwise 5GB.", metavar="SIZE")] = None,
    python: Python = None,
    no_verify: NoVerify = False,
    as_json: AsJson = False,
) -> None:
    """Write base model and adapter as one model: weights, tokenizer, chat template, configuration.  Its logits are
    compared with those of base and adapter; it appears only when they agree."""
    asked = _asked(base, adapter, export, config, dtype)
    if asked.out is None:
        raise Failure("where to? give --export PATH (or export_dir in --config)")
    if shard_size is None and asked.shard is not None:
        shard_size = str(asked.shard)
    arguments = [*asked.arguments, "--export", str(asked.out), *_option("--shard-size", shard_size)]
    done = _run(python, "adapters.merge", [*arguments, *(["--no-verify"] if no_verify else [])])
    if as_json:
        print_json(done)
        return
    say(f"{done['path']}: the merged model ({_size(done['bytes'])} in {done['files']} file(s), {done['dtype']}).")
    _tell(done)


def export(
    to: Annotated[Target, typer.Option(help="A folder, a GGUF file, or a model in an Ollama server.")],
    out: Annotated[
        Path | None,
        typer.Argument(help="Folder (hf), file (gguf), or folder to keep the GGUF file in (ollama).", metavar="OUT"),
    ] = None,
    base: Base = None,
    adapter: Adapter = None,
    config: ConfigFile = None,
    dtype: DtypeOption = None,
    quantize: Annotated[
        str | None,
        typer.Option(help="f32, f16, bf16, q8_0; for ollama also q4_K_M and others.  Otherwise nothing is lost."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the model is called in Ollama.", metavar="NAME")] = None,
    ollama_url: Annotated[str | None, typer.Option(help="Otherwise http://127.0.0.1:11434.", metavar="URL")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="The model of that name in Ollama.")] = False,
    converter: Annotated[
        Path | None, typer.Option(help="A checkout of llama.cpp; otherwise a pinned package.", metavar="PATH")
    ] = None,
    python: Python = None,
    no_verify: NoVerify = False,
    as_json: AsJson = False,
) -> None:
    """Merge, and hand the model on: as a folder with an Ollama Modelfile, as a GGUF file for llama.cpp and its kin, or
    straight into an Ollama server."""
    asked = _asked(base, adapter, out, config, dtype)
    arguments = [
        *asked.arguments,
        *("--to", to.value),
        *_option("--out", asked.out if out or to is not Target.ollama else None),
        *_option("--quantize", quantize),
        *_option("--name", name),
        *_option("--ollama-url", ollama_url),
        *_option("--converter", converter),
        *(["--replace"] if replace else []),
        *(["--no-verify"] if no_verify else []),
    ]
    done = _run(python, "adapters.export", arguments)
    if as_json:
        print_json(done)
        return
    if to is Target.ollama:
        say(f"{done['name']}: created in Ollama {done['ollama']} ({_size(done['gguf_bytes'])}).")
    elif to is Target.gguf:
        say(f"{done['path']}: {_size(done['gguf_bytes'])}, {done['tensors']} tensors.")
    else:
        say(f"{done['path']}: the merged model ({_size(done['bytes'])}), with a Modelfile.")
    _tell(done)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the options and the file say together; an option goes before the file."""

    arguments: list[str]
    out: str | None
    shard: int | None


def _asked(
    base: str | None, adapters: list[Path] | None, out: Path | None, config: Path | None, dtype: Dtype | None
) -> _Asked:
    file = ExportFile(None, (), None, None, None, ())
    if config is not None:
        try:
            file = read_export(config)
        except MergeError as error:
            raise Failure(str(error)) from None
        for text in file.notes:
            complain(f"note: {config}: {text}")
    model = base or file.base
    folders = [str(folder) for folder in adapters or ()] or [*file.adapters]
    if model is None:
        raise Failure("which model? give --base (or model_name_or_path in --config)")
    if not folders:
        raise Failure("which adapter? give --adapter (or adapter_name_or_path in --config)")
    folder = Path(locate(model, hub_cache(os.environ)))
    if not folder.is_dir():
        raise Failure(f"the base model {model} is not on this machine: give its folder")
    arguments = ["--base", str(folder), *_option("--dtype", dtype.value if dtype else file.dtype)]
    for path in folders:
        arguments += ["--adapter", path]
    return _Asked(arguments, str(out) if out else file.export, file.shard)


def _run(python: Path | None, module: str, arguments: list[str]) -> dict[str, Any]:
    return environment.run(environment.python_of(python), module, arguments)


def _option(name: str, value: object | None) -> list[str]:
    return [] if value is None else [name, str(value)]


def _tell(done: dict[str, Any]) -> None:
    say(f"  tokenizer: of the {_of(done['tokenizer'])}; chat template: {_template(done)}")
    agreement = done["agreement"]
    if agreement is None:
        say("  not verified")
    else:
        say(
            f"  verified in {agreement['dtype']} on {agreement['positions']} tokens of {agreement['prompts']} texts: "
            f"logits differ by {agreement['max']:.2g} at most, {agreement['mean']:.2g} on average "
            f"(the largest is {agreement['scale']:.0f}); {agreement['argmax']:.1%} of the tokens are the same"
        )
        if agreement["dtype"] != "float32":
            say("  each weight was rounded once: now and then an answer differs by a word (--dtype float32 keeps all)")
    say(f"  {done['seconds']} s; merging held {_size(done['peak_memory'])} of memory")


def _of(source: str) -> str:
    return source if source == "base model" else f"adapter {source}"


def _template(done: dict[str, Any]) -> str:
    if done["template"] is None:
        return "there is none"
    in_go = {True: ", also in Ollama's language", False: ", not in Ollama's language", None: ""}
    return f"of the {_of(done['template'])}{in_go[done.get('go_template')]}"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
