"""What every test uses."""

from __future__ import annotations

import asyncio

import pytest
import uvloop


@pytest.fixture(scope="session")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """Tests run on the event loop that the gateway runs on."""
    return uvloop.EventLoopPolicy()
