"""The command: reads the arguments, merges, tells how far it is and how it ended (see `progress`)."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from adapters.merge import process
from adapters.merge.plan import DTYPES
from adapters.merge.progress import Tell
from adapters.merge.sizes import parse_size

NEEDED = ("torch", "transformers", "peft", "safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What both a merge and an export are told."""
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--adapter", type=Path, required=True, action="append", help="several: one after another")
    parser.add_argument("--dtype", choices=list(DTYPES), help="of the merged weights; default: the base model's")
    parser.add_argument("--no-verify", action="store_true", help="do not compare logits with base and adapter")


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m adapters.merge", description="Merges adapters into their base.")
    add_arguments(parser)
    parser.add_argument("--export", type=Path, required=True, help="folder of the merged model; must not exist")
    parser.add_argument("--shard-size", default="5GB", help="of one file at most")
    options = parser.parse_args(words)

    def work(tell: Tell) -> Mapping[str, object]:
        # Only here: it needs what `process.run` has looked for.
        from adapters.merge.merging import Request, merge  # noqa: PLC0415

        shard = parse_size(options.shard_size)
        request = Request(options.base, tuple(options.adapter), options.dtype, shard, not options.no_verify)
        return {"path": str(options.export), **merge(request, options.export, tell).as_json()}

    return process.run(NEEDED, work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
