"""Would vLLM load this adapter, and serve what was trained?

vLLM 0.32 refuses some adapters itself, late and with a 500. Others it takes without a word and serves as something
else: it compares neither shapes nor layers nor the real rank with the base model, ignores peft_type, and lets NaN in.
Refused here is what it refuses, and what it would serve wrongly.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import BinaryIO

from adapters import identity, targets, tokenizer
from adapters.base_model import BaseModel, BaseModelError
from adapters.files import WEIGHTS, open_file, open_folder
from adapters.findings import Code, Finding, RefusedError, quote
from adapters.finite import LIMIT, SCANNABLE, scan
from adapters.inspect import Inspection, inspect, required_max_lora_rank, several
from adapters.manifest import MAX_RANK, Manifest, read_manifest
from adapters.safetensors import SafetensorsError, Tensor, read_header

_MERGE = "merge it into the base model"

# Initialisations that leave the base model as it is (vLLM 0.32's own list); all others change its weights, so that the
# adapter is right only on the changed ones.
_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})

# Keys of rank_pattern times modules: a 70B model with a rank of its own for each of its 560 modules.
MAX_MATCHES = 400_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found. `inspection` is None where the adapter could not be read that far."""

    findings: tuple[Finding, ...]
    inspection: Inspection | None
    slot_bytes: int | None = None  # of the engine's device, for each of its --max-loras; where base and rank are known

    @property
    def ok(self) -> bool:
        """True when nothing of severity `error` was found."""
        return not self.errors

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    def as_json(self) -> dict[str, object]:
        """The verdict as plain values: {"ok", "findings": [{"code", "severity", "message", "remedy"}], "adapter"}."""
        return {
            "ok": self.ok,
            "findings": [
                {"code": str(f.code), "severity": f.severity, "message": f.message, "remedy": f.remedy}
                for f in self.findings
            ],
            "adapter": self.inspection and {**_as_json(self.inspection), "slot_bytes": self.slot_bytes},
        }


def check(path: Path, base: BaseModel | None = None, max_lora_rank: int | None = None) -> Verdict:
    """Judges the adapter in the folder `path` against a base model and an engine's --max-lora-rank.

    Never raises for what is wrong with the adapter: that is what the verdict says. Without `base` the shapes are not
    compared (a warning says so); without `max_lora_rank` any rank that some engine can be started with passes.
    Blocks on the disk: a 10 MB adapter takes tens of milliseconds.
    """
    try:
        folder = open_folder(path)
    except RefusedError as refused:
        return Verdict(refused.findings, None)
    try:
        return _check(folder, base, max_lora_rank)
    except OSError as error:
        remedy = "check the disk, and that nobody is writing there"
        return Verdict((Finding(Code.FILE, f"{path} cannot be read ({error.strerror})", remedy),), None)
    finally:
        os.close(folder)


def _check(folder: int, base: BaseModel | None, max_lora_rank: int | None) -> Verdict:
    findings: list[Finding] = []
    manifest: Manifest | None = None
    try:
        manifest = read_manifest(folder)
    except RefusedError as refused:
        findings += refused.findings
    try:
        with open_file(folder, WEIGHTS) as file:
            tensors = _header(file)
            if manifest is None:
                return Verdict(tuple(findings), None)
            findings += _features(manifest)
            inspection = inspect(manifest, tensors)
            findings += _structure(inspection, max_lora_rank)
            findings += _against(inspection, base, folder)
            # Last, and only when all else is right: then the header bounds how much there is to read.
            if all(finding.severity == "warning" for finding in findings):
                findings += _values(file, inspection, base)
    except RefusedError as refused:
        return Verdict((*findings, *refused.findings), None)
    except BaseModelError as error:  # it could be read a moment ago
        findings.append(
            Finding(Code.BASE_UNKNOWN, str(error), "mend the base model's folder, and check again", "warning")
        )
    slot = base.slot_bytes(max_lora_rank) if base is not None and max_lora_rank is not None else None
    return Verdict(tuple(findings), inspection, slot)


def _header(file: BinaryIO) -> tuple[Tensor, ...]:
    try:
        return read_header(file, os.fstat(file.fileno()).st_size)
    except SafetensorsError as error:
        raise RefusedError(
            Finding(Code.HEADER, f"{WEIGHTS} is no valid safetensors file: {error}", "copy or export the adapter again")
        ) from error


def _features(manifest: Manifest) -> Iterator[Finding]:
    """What the manifest asks for and vLLM does not do."""
    if manifest.use_dora:
        yield Finding(Code.DORA, "the adapter is a DoRA, which vLLM does not serve", f"{_MERGE}, or train a plain LoRA")
    if manifest.bias != "none" or manifest.lora_bias:
        yield Finding(
            Code.BIAS,
            "the adapter changes biases (bias or lora_bias), which vLLM does not serve",
            f'train with bias="none", or {_MERGE}',
        )
    if manifest.modules_to_save:
        yield Finding(
            Code.MODULES_TO_SAVE,
            f"the adapter replaces whole modules (modules_to_save: {several(list(manifest.modules_to_save))})",
            f"train without modules_to_save, or {_MERGE}",
        )
    init = manifest.init_lora_weights
    if isinstance(init, str) and init.lower() not in _INITS:
        yield Finding(
            Code.INIT,
            f"init_lora_weights is {quote(init)}, which changes the base model's weights, too",
            "convert it with peft's path_initial_model_for_weight_conversion, or merge it",
        )
    for variant in manifest.variants:
        yield Finding(Code.VARIANT, f"{variant} is set, which vLLM does not serve", f"train a plain LoRA, or {_MERGE}")


def _structure(inspection: Inspection, max_lora_rank: int | None) -> Iterator[Finding]:
    """Ranks, dtypes and names: what the header says, against the manifest and the engine."""
    yield from _ranks(inspection, max_lora_rank)
    strange = inspection.dtypes - SCANNABLE
    if strange:
        yield Finding(
            Code.DTYPE,
            f"the weights are {', '.join(sorted(strange))}",
            f"save the adapter as one of {', '.join(sorted(SCANNABLE))}",
        )
    if inspection.manifest.ensure_weight_tying and len(_ends(inspection) & {"embed_tokens", "lm_head"}) == 1:
        yield Finding(
            Code.VARIANT,
            "ensure_weight_tying shares one adapter between embed_tokens and lm_head, which vLLM does not",
            f"train without it, or {_MERGE}",
        )
    if "lm_head" in _ends(inspection):
        yield Finding(
            Code.OUTPUT_LAYER,
            "vLLM 0.32 leaves lm_head's part of the adapter out of prompt_logprobs (what it generates is right)",
            f"where those are needed, train without lm_head, or {_MERGE}",
            "warning",
        )
    yield from targets.compare(inspection)


def _against(inspection: Inspection, base: BaseModel | None, folder: int) -> Iterator[Finding]:
    """The adapter and what lies beside it, against the base model."""
    if base is None:
        yield Finding(
            Code.BASE_UNKNOWN,
            "the shapes were not compared with a base model",
            "name the base model's folder",
            "warning",
        )
        return
    yield from _fit(inspection, base)
    yield from identity.compare(inspection, base)
    yield from tokenizer.compare(folder, base)


def _fit(inspection: Inspection, base: BaseModel) -> Iterator[Finding]:
    """Modules and shapes."""
    trained_on = inspection.manifest.base_model
    remedy = "use the base model it was trained on" + (f" ({quote(trained_on)})" if trained_on else "")
    unknown = [name for name in inspection.modules if name not in base.shapes]
    if unknown:
        yield Finding(Code.MODULE, f"{base.name} has no module {several(unknown)}", remedy)
    misfits = [
        f"{name}: {list(factors.weight_shape)}, not {list(base.shapes[name])}"
        for name, factors in inspection.modules.items()
        if name in base.shapes and factors.weight_shape != base.shapes[name]
    ]
    if misfits:
        yield Finding(Code.SHAPE, f"the shapes are not those of {base.name}: {several(misfits)}", remedy)
    for name, copy in inspection.copies.items():
        if copy.shape != base.shapes.get(name):
            yield Finding(
                Code.VOCABULARY,
                f"the adapter was trained with another vocabulary: its {name} has the shape {list(copy.shape)}",
                f"{_MERGE}, which takes the vocabulary over",
            )


def _ranks(inspection: Inspection, max_lora_rank: int | None) -> Iterator[Finding]:
    manifest = inspection.manifest
    if len(manifest.rank_pattern) * len(inspection.modules) > MAX_MATCHES:
        raise RefusedError(
            Finding(
                Code.PATTERN,
                f"rank_pattern has {len(manifest.rank_pattern)} keys for {len(inspection.modules)} modules",
                "name only the modules whose rank differs from r",
            )
        )
    declared = {name: manifest.rank(name) for name in inspection.modules}
    lies = [
        f"{name} has {rank}, not {declared[name]}" for name, rank in inspection.ranks.items() if rank != declared[name]
    ]
    if lies:
        yield Finding(
            Code.RANK_MISMATCH,
            f"r and rank_pattern do not declare the tensors' rank ({several(lies)}): the scale would be wrong",
            "restore the adapter_config.json that was written with these weights",
        )
    rank = inspection.rank
    if rank > MAX_RANK:
        yield Finding(
            Code.RANK, f"rank {rank} > {MAX_RANK}, the highest vLLM serves", f"train with a smaller rank, or {_MERGE}"
        )
    elif max_lora_rank is not None and rank > max_lora_rank:
        yield Finding(
            Code.RANK_TOO_LARGE,
            f"rank {rank} > {max_lora_rank}",
            f"start the engine with --max-lora-rank {required_max_lora_rank([rank])}, or merge",
        )


def _values(file: BinaryIO, inspection: Inspection, base: BaseModel | None) -> Iterator[Finding]:
    """Reads all weights once."""
    effect = False
    try:
        for name, factors in inspection.modules.items():
            scale = inspection.manifest.scale(name)
            for tensor, multiplied in ((factors.a, 1.0), (factors.b, scale)):
                values = scan(file, tensor, multiplied)
                if values.index is not None:
                    yield _spoilt(tensor, values.index, values.value, multiplied)
                    return
            effect = effect or not (values.zero or scale == 0)
        if base is not None:
            yield from identity.compare_copies(file, inspection, base)
    except EOFError as error:
        yield Finding(Code.FILE, f"{WEIGHTS} became shorter while it was read ({error})", "let nobody write there")
        return
    if not effect:
        yield Finding(
            Code.NO_EFFECT, "lora_B or alpha is zero everywhere: the base model answers", "was it trained?", "warning"
        )


def _spoilt(tensor: Tensor, index: int, value: float, scale: float) -> Finding:
    where = f"{quote(tensor.name, 160)} holds {value} at element {index}"
    remedy = "the training diverged: take an earlier checkpoint, or train with a lower learning rate"
    if not isfinite(value):
        return Finding(Code.NOT_FINITE, where, remedy)
    scaled = f", multiplied by alpha / rank ({scale:g})" if abs(scale) > 1 else ""
    return Finding(Code.OVERFLOW, f"{where}{scaled}: twice {LIMIT:g} is infinite in float16", remedy)


def _ends(inspection: Inspection) -> set[str]:
    return {name.rpartition(".")[2] for name in inspection.modules}


def _as_json(inspection: Inspection) -> dict[str, object]:
    return {
        "base_model": inspection.manifest.base_model,
        "rank": inspection.rank,
        "alpha": inspection.manifest.alpha,
        "modules": len(inspection.modules),
        "targets": sorted(_ends(inspection)),
        "parameters": inspection.parameters,
        "dtypes": sorted(inspection.dtypes),
        "memory_bytes": inspection.memory_bytes(),
    }
