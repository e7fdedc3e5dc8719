"""The browser that the tests drive: Chromium as it is installed, never one that is downloaded.  Standard library only,
because tests.e2e.prepare looks for it too."""

from __future__ import annotations

import shutil

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")

#: Headless and quiet: it asks nobody but the pages that it is sent to.
FLAGS = (
    "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
)  # fmt: skip


def chromium() -> str | None:
    """Where Chromium or Chrome is installed."""
    return next(filter(None, map(shutil.which, _NAMES)), None)
