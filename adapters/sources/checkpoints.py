"""The output folder of a training: an adapter at the top, or only checkpoints of one inside (checkpoint-500, …).

transformers' Trainer, and so peft's and LLaMA-Factory's trainings, name them after the step. Where the top holds an
adapter it is the one that was meant; else the newest checkpoint is.
"""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from adapters.files import CONFIG

_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,12})", re.ASCII)


def newest_checkpoint(names: Iterable[str], is_adapter: Callable[[str], bool]) -> str | None:
    """The checkpoint of the highest step among the `names` of folders, of those that hold an adapter."""
    steps = [(int(match[1]), name) for name in names if (match := _CHECKPOINT.fullmatch(name))]
    return next((name for _, name in sorted(steps, reverse=True) if is_adapter(name)), None)


def adapter_folder(folder: Path) -> Path:
    """The folder in `folder` that holds the adapter: itself, or its newest checkpoint. Raises OSError.

    A folder without either is returned as it is: reading it tells what is missing.
    """
    if os.path.lexists(folder / CONFIG):
        return folder
    with os.scandir(folder) as entries:
        folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    name = newest_checkpoint(folders, lambda name: os.path.lexists(folder / name / CONFIG))
    return folder if name is None else folder / name
