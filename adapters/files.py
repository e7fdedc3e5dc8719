"""The files an adapter consists of, and the only way they are opened."""

import errno
import os
import stat
from collections.abc import Collection
from io import FileIO
from pathlib import Path

from adapters.findings import Code, Finding, RefusedError, quote

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

# What an adapter is. Everything else in its folder (README, tokenizer, training_args.bin, checkpoints) is left alone.
ADAPTER_FILES = (CONFIG, WEIGHTS)

# What training tools write beside it and a check may look at: how the adapter's tokenizer and chat template differ from
# the base model's. An import brings these along until the adapter is judged; the store does not keep them.
BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.json",  # where transformers 5 lists added tokens
)

# Upper bounds in bytes: peft's configurations are 1-2 KB; a rank-512 adapter of a 70B model is about 8 GiB in bf16;
# a tokenizer_config.json that lists 10,000 added tokens has 2 MB, a tokenizer.json of 256,000 tokens 34 MB.
MAX_BYTES = {CONFIG: 1 << 20, WEIGHTS: 16 << 30, **dict.fromkeys(BESIDE, 8 << 20), "tokenizer.json": 64 << 20}

# Where peft and other tools put pickled weights; vLLM reads the first two.
PICKLES = (
    "adapter_model.bin",
    "adapter_model.pt",
    "adapter_model.pth",
    "adapter_model.ckpt",
    "adapter_model.pkl",
    "pytorch_model.bin",
)


def open_folder(folder: Path) -> int:
    """A descriptor of the adapter's folder, for `open_file`; the caller closes it.

    Raises RefusedError where there is no folder that can be read.
    """
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise RefusedError(
            Finding(
                Code.FOLDER,
                f"{folder} is not a folder that can be read ({os.strerror(error.errno or 0)})",
                f"give the folder that holds {CONFIG} and {WEIGHTS}",
            )
        ) from error


def open_file(folder: int, name: str) -> FileIO:
    """Opens a file of the adapter for reading: a regular file in the folder itself, of bounded size.

    Links are not followed, wherever they point: what was checked is what is copied. O_NONBLOCK keeps a pipe from
    hanging the open. Raises RefusedError.
    """
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        raise RefusedError(_not_opened(folder, name, error)) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise RefusedError(Finding(Code.FILE, f"{name} is not a regular file", "put the file itself there"))
        if found.st_size > MAX_BYTES[name]:
            raise too_large(name, MAX_BYTES[name])
        return FileIO(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _not_opened(folder: int, name: str, error: OSError) -> Finding:
    if error.errno == errno.ELOOP:
        return Finding(Code.LINK, f"{name} is a symbolic link", "copy the file itself into the folder (cp -L)")
    if error.errno != errno.ENOENT:
        why = os.strerror(error.errno or 0)
        return Finding(Code.FILE, f"{name} cannot be opened ({why})", "let the gateway's user read it")
    return missing(name, os.listdir(folder))


def too_large(name: str, most: int) -> RefusedError:
    """For a file, or all of an adapter, that has more than `most` bytes."""
    remedy = "this is not what a LoRA adapter looks like; check what was exported"
    return RefusedError(Finding(Code.TOO_LARGE, f"{name} has more than {most} bytes", remedy))


def missing(name: str, names: Collection[str]) -> Finding:
    """Says that a file of the adapter is not among the `names` that a folder holds, and what is there instead."""
    if name == CONFIG:
        return Finding(Code.CONFIG_MISSING, f"there is no {CONFIG}", "export the adapter with peft's save_pretrained()")
    pickles = sorted(set(names).intersection(PICKLES))
    if pickles:
        return Finding(
            Code.PICKLE,
            f"the weights are a pickle ({pickles[0]}), which can run code when it is read",
            "only safetensors are taken: save the adapter again with peft's save_pretrained(safe_serialization=True)",
        )
    shards = sorted(n for n in names if n.startswith("adapter_model-") and n.endswith(".safetensors"))
    if shards:
        return Finding(
            Code.WEIGHTS_MISSING,
            f"the weights are split ({quote(shards[0])} …), which vLLM does not read",
            f"save the adapter as one {WEIGHTS} (max_shard_size)",
        )
    return Finding(Code.WEIGHTS_MISSING, f"there is no {WEIGHTS}", "export the adapter with peft's save_pretrained()")
