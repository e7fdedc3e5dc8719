"""Makes what the browser tests need: var/open-webui with Open WebUI, and a Chromium where none is installed.

    python -m tests.e2e.prepare

Done once: a stamp holds a hash of all that went in.  Standard library only.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import venv
from pathlib import Path

from deploy.engine.exclusive import exclusive
from deploy.engine.install import counter, digest
from deploy.engine.progress import Step, StepError, run
from tests.e2e.browser import chromium

HERE = Path(__file__).resolve().parent
PACKAGES = HERE / "open-webui.txt"
OPEN_WEBUI = HERE.parent.parent / "var" / "open-webui"
STAMP = OPEN_WEBUI / "stamp"


def install_open_webui() -> None:
    """Open WebUI in an environment of its own: its pins are neither the gateway's nor the engine's."""
    wanted = digest([PACKAGES], platform.python_version(), str(OPEN_WEBUI))
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    if not (3, 11) <= sys.version_info < (3, 13):
        raise StepError(f"Open WebUI needs Python 3.11 or 3.12; this is {platform.python_version()}.")
    packages = [line for line in PACKAGES.read_text().splitlines() if not line.startswith("#")]
    with Step(f"Open WebUI's {len(packages)} packages in var/open-webui") as step:
        shutil.rmtree(OPEN_WEBUI, ignore_errors=True)
        venv.create(OPEN_WEBUI, with_pip=True, symlinks=True)
        pip = [str(OPEN_WEBUI / "bin" / "python"), "-m", "pip", "--no-input", "--disable-pip-version-check"]
        run([*pip, "install", "--no-deps", "-r", str(PACKAGES)], counter(len(packages), step.note))
    STAMP.write_text(wanted)


def install_chromium() -> None:
    """Debian's package, where this may be done; elsewhere the person is asked to do it."""
    if chromium() is not None:
        return
    debian = platform.system() == "Linux" and platform.freedesktop_os_release().get("ID") == "debian"
    if not debian or os.geteuid() != 0:
        raise StepError(
            "No Chromium or Chrome is on the PATH. Install one with your system's packages "
            "(on Debian: apt-get install chromium) and run this again."
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with Step("Chromium") as step:
        run(["apt-get", "update"], step.note, environment)
        run(["apt-get", "install", "--yes", "--no-install-recommends", "chromium"], step.note, environment)


def main() -> int:
    try:
        with exclusive(OPEN_WEBUI.with_name("open-webui.lock")):
            install_open_webui()
            install_chromium()
    except StepError as error:
        sys.stderr.write(f"The browser tests can't be prepared. {error}\n")
        return 1
    sys.stdout.write(f"  Open WebUI is ready in var/open-webui, the browser is {chromium()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
