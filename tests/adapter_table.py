"""The table in docs/adapter-check.md: each adapter of the corpus, with what vLLM and the check say of it.

python -m tests.adapter_table     writes it anew
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from adapters import BaseModel, Verdict, check
from tests.fakes.adapter_corpus import AREAS, TINY, Case, write_base

PAGE = Path(__file__).resolve().parents[1] / "docs" / "adapter-check.md"
_BEGIN, _END = "do not edit below -->\n", "<!-- end -->"

_ENGINE = {
    "serves": "serves it",
    "refuses": "refuses it",
    "misserves": "takes it, and serves it wrongly",
    "unasked": "waits for ever",
}


def page(text: str) -> str:
    """The page with the table as it has to be."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{table()}\n{_END}{after}"


def table() -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = BaseModel.read(write_base(folder / "base" / TINY.name))
        return "\n".join(_lines(folder, base))


def _lines(folder: Path, base: BaseModel) -> Iterator[str]:
    for area in AREAS:
        yield f"\n### {area.title}\n"
        yield "| adapter | what it is | vLLM | the check | why, and what to do |"
        yield "|---|---|---|---|---|"
        for case in area.cases:
            verdict = check(case.write(folder / case.name), base, max_lora_rank=16)
            cells = (f"`{case.name}`", _escaped(case.what), _ENGINE[case.engine], _said(verdict), _why(case, verdict))
            yield f"| {' | '.join(cells)} |"


def _said(verdict: Verdict) -> str:
    codes = ", ".join(dict.fromkeys(f"`{finding.code}`" for finding in verdict.errors or verdict.warnings))
    if verdict.errors:
        return f"**refuses**: {codes}"
    return f"accepts, warns: {codes}" if codes else "accepts"


def _why(case: Case, verdict: Verdict) -> str:
    reasons = [_escaped(str(finding)) for finding in (verdict.errors or verdict.warnings)[:1]]
    if case.stricter:
        reasons.append(f"*Stricter*: {_escaped(case.stricter)}.")
    return ". ".join(reasons) if not reasons or reasons[0].endswith((".", "?")) else ". ".join(reasons) + "."


def _escaped(text: str) -> str:
    return re.sub(r"([\\|<>*`\[\]])", r"\\\1", text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
