"""The command: reads the arguments, exports, tells how far it is and how it ended (see `adapters.merge.progress`)."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from adapters.export.converter import TYPES
from adapters.export.ollama import DEFAULT_URL, Ollama
from adapters.merge import process
from adapters.merge.__main__ import NEEDED, add_arguments
from adapters.merge.errors import MergeError
from adapters.merge.progress import Tell

TARGETS = ("hf", "gguf", "ollama")


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m adapters.export", description="Merges, converts, hands over.")
    add_arguments(parser)
    parser.add_argument("--to", choices=TARGETS, required=True)
    parser.add_argument("--out", type=Path, help="folder (hf, ollama) or file (gguf)")
    parser.add_argument("--quantize", help=f"{', '.join(TYPES)}; for ollama also q4_K_M and what else the server can")
    parser.add_argument("--converter", type=Path, help="a checkout of llama.cpp; default: the pinned package")
    parser.add_argument("--name", help="of the model in Ollama")
    parser.add_argument("--ollama-url", default=DEFAULT_URL)
    parser.add_argument("--replace", action="store_true", help="the model of that name in Ollama")
    options = parser.parse_args(words)

    def work(tell: Tell) -> Mapping[str, object]:
        # Only here: they need what `process.run` has looked for.
        from adapters.export import exporting  # noqa: PLC0415
        from adapters.merge.merging import Request  # noqa: PLC0415

        request = Request(options.base, tuple(options.adapter), options.dtype, verify=not options.no_verify)
        kind = None if options.quantize is None else _kind(options.quantize, options.to)
        if options.to == "ollama":
            if not options.name:
                raise MergeError("--to ollama needs --name: what the model is called there")
            server = Ollama(options.ollama_url)
            arguments = (server, options.name, kind, options.replace, options.out, options.converter, tell)
            return exporting.to_ollama(request, *arguments)
        if options.out is None:
            raise MergeError(f"--to {options.to} needs a place to write to")
        if options.to == "gguf":
            return exporting.to_gguf(request, options.out, kind, options.converter, tell)
        return exporting.to_folder(request, options.out, tell)

    return process.run(NEEDED, work)


def _kind(text: str, to: str) -> str:
    """The kind of weights, as the converter or Ollama calls it. Raises MergeError."""
    if text.lower() in TYPES and to != "hf":
        return text.lower()
    if to == "hf":
        raise MergeError("--to hf keeps whole weights: leave --quantize out, or take --to gguf")
    if to == "gguf":
        raise MergeError(
            f"{text!a} is not one of {', '.join(TYPES)}: for the others convert to f16 first and use llama.cpp's"
            " llama-quantize, or let Ollama do it (--to ollama)"
        )
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
