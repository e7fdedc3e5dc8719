"""Open WebUI in a browser, before a gateway with the real engines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from tests.e2e.browser import FLAGS, chromium
from tests.e2e.open_webui import OpenWebUI, open_webui
from tests.e2e.person import Person
from tests.gateway import AUTH, CLIENT_KEY, ROOT
from tests.people import SECRET
from tests.real import BASE, JSON, LLAMA, PIRATE, Served, served

PATIENCE = 60_000  # milliseconds for anything to appear; an answer of the small model takes 2,000 on idle cores
FAILURES = ROOT / "var" / "e2e"
IMAGES = ROOT / "docs" / "images"
PRICE = {"input": 0.05, "output": 0.2}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", action="store_true", help="write the pictures of the documents anew")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test leaves a picture of what everybody in it saw."""
    report = yield
    people = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Person)]
    for person in people if report.failed else ():
        with contextlib.suppress(PlaywrightError):  # the page itself may have died
            person.page.screenshot(path=FAILURES / f"{item.name}-{person.name}.png")
    return report


@pytest.fixture(scope="package")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The real engines, with what the gateway can do for Open WebUI turned on: names, prices, a model for the
    background tasks, buttons for adapters, users that are told apart; and few places, so that one can be seen to
    wait."""
    local = {
        "concurrency": {"limit": 2, "queue": 1, "queue_timeout": 60},
        "parameters": {"set": {"temperature": 0}},
        "overrides": {
            BASE: {
                "name": "SmolLM2 135M",
                "description": "A very small model that runs anywhere.",
                "price": PRICE,
                "parameters": {"set": {"max_tokens": 300}},  # a story may have no end
            },
            PIRATE: {"name": "SmolLM2 Pirate", "price": PRICE},
        },
    }
    third = {"overrides": {LLAMA: {"name": "Small helper", "parameters": {"set": {"max_tokens": 32}}}}}
    sections = {
        "auth": {**AUTH, "keys": [{"name": "openwebui", "key": CLIENT_KEY}]},
        "openwebui": {"tasks": {"*": LLAMA}},
        "users": {
            "openwebui": {"jwt_secret": SECRET},
            "roles": {"admin": ["adapters"]},
            "models": {"user": [BASE, PIRATE, JSON]},
        },
    }
    with served(tmp_path_factory.mktemp("real"), local, third, sections) as running:
        yield running


@pytest.fixture(scope="package")
def webui(real: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenWebUI]:
    """Open WebUI with an empty database."""
    settings = {"OPENWEBUI_KEY": real.gateway.key, "MODEL_NAME": BASE, "DEFAULT_USER_ROLE": "user"}
    settings["OWUI_JWT_SECRET"] = SECRET
    with open_webui(tmp_path_factory.mktemp("open-webui"), real.gateway.url, settings) as running:
        yield running


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    found = chromium()
    assert found, "no Chromium is installed: run `python -m tests.e2e.prepare`"
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=found, args=FLAGS) as started:
            yield started


@pytest.fixture(scope="package")
def enter(browser: Browser, webui: OpenWebUI) -> Callable[[str], Person]:
    """Somebody new, with a browser window of their own."""

    def somebody(name: str) -> Person:
        page: Page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        page.set_default_timeout(PATIENCE)
        return Person(page, webui.url, name)

    return somebody


@pytest.fixture(scope="package")
def ada(enter: Callable[[str], Person]) -> Person:
    """The first person, signed up."""
    person = enter("Ada")
    person.sign_up()
    person.dismiss_news()
    return person


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[[Person, str], None]:
    """Writes what a person sees into docs/images, when that is asked for."""

    def write(person: Person, name: str) -> None:
        if request.config.getoption("--screenshots"):
            person.page.set_viewport_size({"width": 1280, "height": 640})
            person.page.screenshot(path=IMAGES / name)

    return write
