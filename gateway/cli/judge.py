"""`gateway adapters check`: would this adapter be served rightly?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from adapters import BaseModel, BaseModelError, Verdict
from adapters import check as judge
from gateway.cli import admin
from gateway.cli.options import DEFAULT_URL, AdminKey, AsJson, Url, read
from gateway.cli.output import Failure, complain, print_json, say
from gateway.controlplane.hub import hub_cache, locate
from gateway.controlplane.launch import LORA_RANKS
from gateway.controlplane.problems import nearest


@dataclass(frozen=True, slots=True)
class _Against:
    """What an adapter is held against; `called` names it to people."""

    called: str = ""
    model: str | None = None
    max_lora_rank: int | None = None


def check(
    path: Annotated[Path, typer.Argument(help="The adapter's folder.", metavar="PATH")],
    base: Annotated[Path | None, typer.Option(help="Folder of the base model.", metavar="MODEL_DIR")] = None,
    max_lora_rank: Annotated[
        int | None, typer.Option(help=f"The engine's limit, one of {', '.join(map(str, LORA_RANKS))}.", metavar="N")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="An engine of --config, or of a running gateway, by its name.", metavar="NAME")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Take base model and limit from an engine of this file.", metavar="FILE")
    ] = None,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
    as_json: AsJson = False,
) -> None:
    """Say whether an adapter would load and be served rightly on a base model: exit 0, or 1 with each reason and its
    remedy.  Needs no GPU and no running gateway."""
    if max_lora_rank is not None and max_lora_rank not in LORA_RANKS:
        raise Failure(f"--max-lora-rank must be one of {', '.join(map(str, LORA_RANKS))}, as vLLM has them")
    against = _Against()
    if config is not None:
        against = _of_file(config, engine)
    elif engine is not None:
        against = _of_running(admin.fetch(url, admin_key, "upstreams"), engine)
    model = str(base) if base is not None else against.model
    verdict = judge(path, None if model is None else _base(model), max_lora_rank or against.max_lora_rank)
    if as_json:
        print_json(verdict.as_json())
    else:
        _tell(path, model, verdict)
    raise typer.Exit(0 if verdict.ok else 1)


def _of_file(file: Path, name: str | None) -> _Against:
    engines = {u.name: u.engine for u in read(file).upstreams if u.engine is not None}
    if name is None and len(engines) != 1:
        raise Failure(f"{file} has {len(engines)} engines: say which one with --engine")
    name = name or next(iter(engines))
    if name not in engines:
        raise Failure(f"{file} has no engine {name}; {nearest(name, engines, 'engine')}")
    return _Against(name, engines[name].model, engines[name].max_lora_rank)


def _of_running(upstreams: list[dict[str, Any]], name: str) -> _Against:
    engines = {row["name"]: row["engine"] for row in upstreams if row.get("name") and row.get("engine")}
    if name not in engines:
        raise Failure(f"the gateway has no engine {name}; {nearest(name, engines, 'engine')}")
    return _Against(name, engines[name].get("model"), engines[name].get("max_lora_rank"))


def _base(model: str) -> BaseModel:
    folder = Path(locate(model, hub_cache(os.environ)))
    if not folder.is_dir():
        raise Failure(f"the base model {model} is not on this machine: give its folder with --base")
    try:
        return BaseModel.read(folder)
    except BaseModelError as error:
        raise Failure(str(error)) from None


def _tell(path: Path, model: str | None, verdict: Verdict) -> None:
    on = f" on {model}" if model else ""
    if verdict.ok:
        found = verdict.inspection
        size = f" (rank {found.rank}, {len(found.modules)} modules)" if found is not None else ""
        say(f"{path}: would be loaded and served rightly{on}{size}.")
    else:
        say(f"{path}: would not be served rightly{on}.")
    for finding in (*verdict.errors, *verdict.warnings):
        complain(f"{finding.severity}: {finding.message}: {finding.remedy} [{finding.code}]")
