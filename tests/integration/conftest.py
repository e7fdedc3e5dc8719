"""What the tests of the gateway's promises share."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.integration.rig import Rig, rig


class Serve(Protocol):
    """Starts a gateway over upstreams; tests/integration/rig.py has the settings."""

    def __call__(self, upstreams: Any, **settings: Any) -> AbstractAsyncContextManager[Rig]: ...


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    return partial(rig, tmp_path)
