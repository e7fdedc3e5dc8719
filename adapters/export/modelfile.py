"""Ollama's Modelfile (https://docs.ollama.com/modelfile)."""

import json
from collections.abc import Sequence


def modelfile(source: str, template: str | None, stops: Sequence[str]) -> str:
    """`source` is what FROM names, relative to the file's own place. A template that holds three quotation marks in a
    row cannot be written there, and is left out."""
    lines = [f"FROM {source}"]
    if template is not None and '"""' not in template:
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join(lines) + "\n"
