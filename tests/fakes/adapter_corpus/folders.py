"""The folder and its files."""

import os
from collections.abc import Callable
from pathlib import Path

from adapters import Code
from tests.fakes.adapter_corpus.case import Area
from tests.fakes.adapter_corpus.craft import CONFIG, WEIGHTS, Craft
from tests.fakes.adapter_corpus.pickled import torch_file

AREA = Area("The folder")
case = AREA.case
changed = AREA.changed


def _nothing(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _link(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).rename(folder.parent / f"{folder.name}.{name}")
        (folder / name).symlink_to(folder.parent / f"{folder.name}.{name}")

    return apply


def _in_place(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return apply


def _renamed(to: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / to)

    return apply


changed("nothing_in_it", "empty", Code.CONFIG_MISSING, Code.WEIGHTS_MISSING, engine="refuses", after=_nothing)
changed(
    "no_configuration",
    f"no {CONFIG}",
    Code.CONFIG_MISSING,
    engine="refuses",
    after=lambda folder: (folder / CONFIG).unlink(),
)
changed(
    "no_weights",
    f"no {WEIGHTS}",
    Code.WEIGHTS_MISSING,
    engine="refuses",
    after=lambda folder: (folder / WEIGHTS).unlink(),
)


@case(
    "pickled_weights",
    "adapter_model.bin, as torch.save writes it",
    Code.PICKLE,
    engine="serves",
    like="plain",
    stricter="a pickle can run code in whoever reads it",
)
def _(craft: Craft) -> None:
    craft.files["adapter_model.bin"] = torch_file({name: values for name, (_, values) in craft.tensors.items()})
    craft.after = lambda folder: (folder / WEIGHTS).unlink()


changed(
    "weights_in_shards",
    "adapter_model-00001-of-00002.safetensors",
    Code.WEIGHTS_MISSING,
    engine="refuses",
    after=_renamed("adapter_model-00001-of-00002.safetensors"),
)
_FOLLOWED = "what a link leads to can change after the check, and can be any file of this machine"
changed("weights_a_link", "a symbolic link", Code.LINK, engine="serves", stricter=_FOLLOWED, after=_link(WEIGHTS))
changed("configuration_a_link", "a symbolic link", Code.LINK, engine="serves", stricter=_FOLLOWED, after=_link(CONFIG))
changed("weights_a_folder", "a folder", Code.FILE, engine="refuses", after=_in_place(WEIGHTS, Path.mkdir))
changed("weights_a_pipe", "a named pipe", Code.FILE, engine="refuses", after=_in_place(WEIGHTS, os.mkfifo))
changed("configuration_a_pipe", "a named pipe", Code.FILE, engine="unasked", after=_in_place(CONFIG, os.mkfifo))
