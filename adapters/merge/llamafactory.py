"""Reads the YAML file that `llamafactory-cli export` takes (LLaMA-Factory 0.9), as far as it is about merging.

Every key is either used, passed over with a word why, or refused: nothing is left out in silence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from adapters.merge.errors import MergeError
from adapters.merge.plan import DTYPES

_MAX_BYTES = 1 << 20
_GB = 1_000_000_000  # of export_size, as transformers counts them

_BASE = ("model_name_or_path", "path_to_base_model")
_ADAPTER = ("adapter_name_or_path", "path_to_adapter")
_EXPORT = ("export_dir", "path_to_export")

_HARMLESS: Mapping[str, str] = {
    "template": "the merged model keeps the chat template of its adapter or base model",
    "export_device": "weights are merged on the CPU, tensor by tensor",
    "export_hub_model_id": "nothing is uploaded to a hub",
    "trust_remote_code": "no code of a model is run",
    "cache_dir": "the base model is looked for on this machine only",
    "stage": "",
    "do_train": "",
    "finetuning_type": "",
}
_OFF = (None, False, "", "none", "None", "null")
_REFUSED: Mapping[str, str] = {
    "export_quantization_bit": "quantise the merged model afterwards (gateway adapters export --quantize q8_0)",
    "quantization_bit": "merge into the whole model, not into a quantised one",
    "export_legacy_format": "weights are written as safetensors only: legacy files are pickles",
}


@dataclass(frozen=True, slots=True)
class ExportFile:
    """What such a file asks for; None where it does not say. `notes`: what of it is passed over, and why."""

    base: str | None
    adapters: tuple[str, ...]
    export: str | None
    dtype: str | None
    shard: int | None
    notes: tuple[str, ...]


def read_export(file: Path) -> ExportFile:
    """Raises MergeError with the key that is wrong."""
    fields = _fields(file)
    for name, remedy in _REFUSED.items():
        if fields.get(name) not in _OFF:
            raise MergeError(f"{file}: {name} is {fields[name]!a}: {remedy}")
    kind = fields.get("finetuning_type", "lora")
    if kind != "lora":
        raise MergeError(f"{file}: finetuning_type is {kind!a}: only adapters are merged, and that makes none")
    used = {*_BASE, *_ADAPTER, *_EXPORT, "export_size", "infer_dtype", *_REFUSED}
    return ExportFile(
        _text(file, fields, _BASE),
        _texts(file, fields),
        _text(file, fields, _EXPORT),
        _dtype(file, fields),
        _shard(file, fields),
        tuple(_note(name) for name in fields if name not in used and _note(name)),
    )


def _fields(file: Path) -> dict[str, object]:
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
        fields = yaml.safe_load(data) if len(data) <= _MAX_BYTES else None
    except OSError as error:
        raise MergeError(f"{file} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        raise MergeError(f"{file} is no valid YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise MergeError(f"{file} is not an export file of LLaMA-Factory: it has no keys such as {_BASE[0]}")
    return fields


def _note(name: str) -> str:
    """Why a key is passed over; empty where there is nothing to say."""
    reason = _HARMLESS.get(name, "it has no meaning for a merge")
    return f"{name} is passed over: {reason}" if reason else ""


def _text(file: Path, fields: Mapping[str, object], names: tuple[str, ...]) -> str | None:
    given = [name for name in names if fields.get(name) is not None]
    if len(given) > 1:
        raise MergeError(f"{file}: {' and '.join(given)} mean the same: keep one")
    value = fields[given[0]] if given else None
    if isinstance(value, str | None):
        return value
    raise MergeError(f"{file}: {given[0]} is {value!a}, not a path")


def _texts(file: Path, fields: Mapping[str, object]) -> tuple[str, ...]:
    """The adapters: LLaMA-Factory separates them with commas, and merges them in that order."""
    name = next((name for name in _ADAPTER if isinstance(fields.get(name), list)), None)
    if name is None:
        text = _text(file, fields, _ADAPTER) or ""
        return tuple(part.strip() for part in text.split(",") if part.strip())
    entries = fields[name]
    if isinstance(entries, list) and all(isinstance(entry, str) for entry in entries):
        return tuple(entries)
    raise MergeError(f"{file}: {name} is {entries!a}, not a list of paths")


def _dtype(file: Path, fields: Mapping[str, object]) -> str | None:
    value = fields.get("infer_dtype", "auto")
    if value == "auto":
        return None
    if isinstance(value, str) and value in DTYPES:
        return value
    raise MergeError(f"{file}: infer_dtype is {value!a}, not auto or one of {', '.join(DTYPES)}")


def _shard(file: Path, fields: Mapping[str, object]) -> int | None:
    value = fields.get("export_size")
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1000:
        return value * _GB
    raise MergeError(f"{file}: export_size is {value!a}, not a number of gigabytes")
