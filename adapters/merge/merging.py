"""A merge from its beginning to its end: read, plan, compute, verify, put in place."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.merge import compute
from adapters.merge.checkpoint import Checkpoint
from adapters.merge.companions import Origin, tokens_of, write_companions
from adapters.merge.errors import MergeError, NotStreamableError
from adapters.merge.folder import exported, require_disk
from adapters.merge.machine import available_memory, peak_memory
from adapters.merge.plan import DTYPES, Plan, make_plan
from adapters.merge.progress import Progress, Tell, note
from adapters.merge.recipe import Recipe, find_adapter, read_recipe

_SHORT_TO_LONG = {short: long for long, short in DTYPES.items()}
_LIBRARIES = 1 << 30  # bytes that torch, transformers, peft and a few activations take


@dataclass(frozen=True, slots=True)
class Request:
    """What to merge. `dtype`: one of DTYPES, None keeps the base model's; `shard`: bytes of one file at most."""

    base: Path
    adapters: tuple[Path, ...]
    dtype: str | None = None
    shard: int = 5_000_000_000
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Merged:
    """What lies in the folder now. `through_peft`: why it was not merged tensor by tensor; `agreement`: None where it
    was not verified; `memory`: bytes that this process held at most until the weights were written."""

    size: int
    files: int
    dtype: str
    origin: Origin
    through_peft: str | None
    agreement: Mapping[str, object] | None
    memory: int
    seconds: float

    def as_json(self) -> dict[str, object]:
        return {
            "bytes": self.size,
            "files": self.files,
            "dtype": self.dtype,
            "tokenizer": self.origin.tokenizer,
            "template": self.origin.template,
            "through_peft": self.through_peft,
            "agreement": self.agreement,
            "seconds": round(self.seconds, 1),
            "peak_memory": self.memory,
        }


def merge(request: Request, target: Path, tell: Tell) -> Merged:
    """Writes the merged model to `target`, whole or not at all. Raises MergeError."""
    with exported(target) as folder:
        return merge_into(request, folder, tell)


def merge_into(request: Request, folder: Path, tell: Tell, spare: int = 0) -> Merged:
    """Writes it into `folder`, an empty one; `spare`: bytes that are needed there afterwards. Raises MergeError, also
    when the merged model does not answer as base and adapter do."""
    started = time.monotonic()
    base = Checkpoint.read(request.base)
    folders = [find_adapter(path) for path in request.adapters]
    for given, found in zip(request.adapters, folders, strict=True):
        if found != given:
            note(tell, f"{given} holds no adapter at its top: taking {found.name}")
    dtype = request.dtype or _dtype(base)
    recipes, why = _recipes(folders, base)
    for recipe in recipes:
        if recipe.base_name and Path(recipe.base_name).name.casefold() != base.folder.resolve().name.casefold():
            note(
                tell, f"{recipe.adapter} says it was trained on {recipe.base_name!a}, not {base.folder.resolve().name}"
            )
    if request.verify or why:
        require_memory(base, dtype, why or "to compare its answers (or leave that out: --no-verify)")
    if why is None:
        plan = make_plan(base, recipes, DTYPES[request.dtype] if request.dtype else None)
        require_disk(folder, plan.size + spare, "the merged model")
        origin = write_companions(base.folder, folders, folder, plan.config)
        _check_tokens(plan, folder)
        files = len(compute.write_model(plan, folder, request.shard, Progress(tell, "Merging", plan.size).add))
    else:
        note(tell, f"{why}: merged through peft, which holds the whole model in memory")
        require_disk(folder, base.size * 2 + spare, "the merged model")
        _whole().write_model(base.folder, folders, folder, request.dtype, request.shard)
        origin = write_companions(base.folder, folders, folder, None)
        files = len(list(folder.glob("*.safetensors")))
    memory = peak_memory()
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    agreement = verify(base.folder, folders, folder, dtype, tell) if request.verify else None
    return Merged(size, files, dtype, origin, why, agreement, memory, time.monotonic() - started)


def verify(base: Path, adapters: Sequence[Path], folder: Path, dtype: str, tell: Tell) -> Mapping[str, object]:
    """How the logits of the model in `folder` agree with those of base and adapter. Raises MergeError if they don't."""
    # Only here: transformers and peft take seconds to load, and a merge alone needs neither.
    from adapters.merge.agreement import compare, tokenised  # noqa: PLC0415

    texts = tokenised(folder)
    progress = Progress(tell, "Verifying", 2 * len(texts), "texts")
    found = compare(base, adapters, folder, dtype, texts, lambda: progress.add(1))
    if not found.ok:
        raise MergeError(
            f"the merged model does not answer as base and adapter do: logits differ by {found.max:.3g} at most and"
            f" {found.mean:.2g} on average (allowed: {found.allowed_max:.3g} and {found.allowed_mean:.2g} in {dtype}),"
            f" and {found.argmax:.1%} of {found.positions} tokens are the same. Nothing was exported."
            + (" Try --dtype float32." if dtype != "float32" else "")
        )
    return found.as_json()


def require_memory(base: Checkpoint, dtype: str, why: str) -> None:
    """Raises MergeError where the whole model does not fit into memory."""
    width = {"F32": 4, "F64": 8}.get(next(iter(base.dtypes), ""), 2)
    needed = base.size * (4 if dtype == "float32" else 2) // width + _LIBRARIES
    free = available_memory()
    if free is not None and free < needed:
        raise MergeError(f"{needed / 1e9:.1f} GB of memory are needed, {free / 1e9:.1f} GB are free: {why}")


def _recipes(folders: Sequence[Path], base: Checkpoint) -> tuple[tuple[Recipe, ...], str | None]:
    """The adapters' recipes, or why only peft can merge them."""
    try:
        return tuple(read_recipe(folder, base) for folder in folders), None
    except NotStreamableError as error:
        return (), str(error)


def _dtype(base: Checkpoint) -> str:
    """The dtype that the model is served in."""
    told = base.config.get("dtype") or base.config.get("torch_dtype")
    if isinstance(told, str) and told in DTYPES:
        return told
    held = sorted(base.dtypes & _SHORT_TO_LONG.keys())
    if not held:
        raise MergeError(f"{base.folder} holds no weights of {', '.join(DTYPES)}: is this a model?")
    return _SHORT_TO_LONG[held[0]]


def _check_tokens(plan: Plan, folder: Path) -> None:
    tokens = tokens_of(folder)
    if plan.vocabulary is not None and tokens is not None and tokens > plan.vocabulary:
        raise MergeError(
            f"the adapter's tokenizer has {tokens} tokens, the merged model {plan.vocabulary}: the adapter was trained"
            " with new tokens, but does not bring their embeddings (modules_to_save)"
        )


def _whole() -> Any:
    from adapters.merge import whole  # noqa: PLC0415 - as above

    return whole
