"""What our reader of safetensors headers accepts, the library that vLLM reads with accepts, and reads the same."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.real import ROOT
from tests.tiers import repeated

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

STRICTER = (
    "the header does not begin with",  # but with a blank, which the format does not allow
    "the header is no JSON of one meaning",  # a name twice in one object
    "does not have exactly the fields",  # more of them
    "__metadata__ is not a map of strings",  # null
    "has a shape that is not a list of at most",
    "does not fill its data_offsets",  # sizes that overflow 63 bits, beside one of zero
)
"""Why we refuse what the library takes: where readers differ, one content is checked and another is served."""


@repeated(quick=5_000, long=1_000_000)
def test_no_lying_header_is_taken_that_the_library_refuses_or_reads_otherwise(
    repetitions: int, engine_env: Path
) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    command = [str(engine_env / "bin" / "python"), "-m", "tests.engine.safetensors_differ", str(repetitions), str(seed)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-4000:]}"
    found = json.loads(done.stdout)
    assert not found["wrong"], f"seed {seed}: {found['wrong']}"
    assert found["both"] > repetitions / 50
    assert found["neither"] > repetitions / 2
    unexplained = [reason for reason in found["stricter"] if not any(known in reason for known in STRICTER)]
    assert not unexplained, f"seed {seed}"
