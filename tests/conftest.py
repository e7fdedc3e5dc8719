"""What every test uses."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop
from hypothesis import settings

from tests.postgres import Server, postgres_server
from tests.real import Served, served

# No test is about speed, and a busy machine is not a fault.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the event loop that the gateway runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The real engines last: the quick tests fail first, and those that look at all processes below this one find only
    their own.  Otherwise the order stays, because some tests of `real` leave less of it behind than they found."""
    items.sort(key=lambda item: item.get_closest_marker("engine") is not None)


def pytest_collection_finish() -> None:
    """What was collected stays, and is not looked through for garbage again and again: a seventh of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One gateway process with the real engines, for all tests that need them."""
    with served(tmp_path_factory.mktemp("real")) as running:
        yield running


@pytest.fixture(scope="module")
def postgres_process() -> Iterator[Server]:
    """One PostgreSQL, for all tests of a file that need it: others count, and bury, what this process has started."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def postgres(postgres_process: Server) -> Iterator[Server]:
    """It runs, and does again when the test has ended, whatever that did to it."""
    yield postgres_process
    postgres_process.restore()
