"""Where the Hugging Face hub's client keeps models on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def locate(model: str, hub: Path) -> str:
    """The model's folder, absolute: itself, or where the hub's client keeps that name; else the name as it is.

    https://huggingface.co/docs/huggingface_hub/guides/manage-cache has the layout of the cache.
    """
    if os.path.isdir(model):
        return os.path.abspath(model)
    repository = hub / f"models--{model.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return model
    folder = repository / "snapshots" / revision
    return str(folder.absolute()) if folder.is_dir() else model


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Where the Hugging Face hub's client keeps models.

    https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
    """
    if cache := environ.get("HF_HUB_CACHE"):
        return Path(cache)
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"
