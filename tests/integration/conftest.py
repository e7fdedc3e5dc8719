"""What the tests of the gateway's promises share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.integration.crashing_gateway import Gateways, gateways
from tests.integration.rig import Rig, rig


class Serve(Protocol):
    """Starts a gateway over upstreams; tests/integration/rig.py has the settings."""

    def __call__(self, upstreams: Any, **settings: Any) -> AbstractAsyncContextManager[Rig]: ...


@pytest.fixture(scope="module")
def program() -> Iterator[Gateways]:
    """Gateways that are killed, and begun anew in no time."""
    with gateways() as running:
        yield running


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    return partial(rig, tmp_path)
