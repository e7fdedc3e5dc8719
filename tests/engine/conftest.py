"""What tests on the real engine need, made by `make engine`. Its absence is a failure: a skipped promise looks kept."""

from pathlib import Path

import pytest

from tests.real import ADAPTERS, JSON, MODEL, PIRATE, ROOT
from tests.voices import trained


def _made(path: Path) -> Path:
    if not path.exists():
        pytest.fail(f"{path.relative_to(ROOT)} isn't there: run `make engine`", pytrace=False)
    return path


@pytest.fixture(scope="session")
def engine_env() -> Path:
    """The environment in which vLLM runs; its programs are in bin/."""
    _made(ROOT / "var" / "engine" / "stamp.json")  # written last: a half-made environment doesn't count
    return ROOT / "var" / "engine"


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The small model in the Hugging Face layout."""
    return _made(MODEL)


@pytest.fixture(scope="session")
def adapters_dir() -> Path:
    """The folder of the sample adapters."""
    for name in (PIRATE, JSON):
        _made(ADAPTERS / name)
    return ADAPTERS


@pytest.fixture(scope="session")
def voices(engine_env: Path, model_dir: Path) -> dict[str, Path]:
    """The folders of two adapters that answer with a sentence of their own."""
    return trained()
