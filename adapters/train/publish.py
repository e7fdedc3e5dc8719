"""Writes a trained adapter so that others may load it: two files, readable by all, there whole or not at all."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel

from adapters.manifest import BASE_DIGESTS

FILES = ("adapter_config.json", "adapter_model.safetensors")
"""All that is published: no pickles, no optimizer state, no model card with a path of this machine in it."""


def publish(adapted: PeftModel, out: Path, base_name: str, base_digests: Mapping[str, str]) -> None:
    """Writes the adapter to the folder `out`, in the place of what is there.

    `base_name` is what the adapter says it was trained on, and `base_digests` (of `adapters.identity`) tell that model
    from others of the name or of the shapes; peft and vLLM pass over them. The folder is made beside its place under a
    name with a dot, which watchers of source folders pass over, and then renamed.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        saved, ready = Path(scratch) / "saved", Path(scratch) / "ready"
        adapted.save_pretrained(saved)
        ready.mkdir()
        for name in FILES:
            shutil.copyfile(saved / name, ready / name)
            (ready / name).chmod(0o644)
        config = json.loads((ready / FILES[0]).read_text())
        config |= {
            "base_model_name_or_path": base_name,
            BASE_DIGESTS: dict(base_digests),
            "target_modules": sorted(config["target_modules"]),
        }
        (ready / FILES[0]).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        if out.exists():
            out.rename(Path(scratch) / "replaced")
        ready.rename(out)
