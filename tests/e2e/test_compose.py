"""What is tested in the browser is what the compose file runs and the document tells."""

from __future__ import annotations

import re
from fnmatch import fnmatch

import yaml

from tests.e2e.open_webui import COMPOSE
from tests.e2e.prepare import PACKAGES
from tests.gateway import ROOT

SERVICE = yaml.safe_load(COMPOSE.read_text())["services"]["open-webui"]
DOCUMENT = (ROOT / "docs" / "open-webui.md").read_text()


def test_the_version_is_the_same_everywhere() -> None:
    (version,) = re.findall(r"^open-webui==(.+)$", PACKAGES.read_text(), re.MULTILINE)
    assert SERVICE["image"].endswith(f":v{version}")
    assert f"open-webui=={version}" in DOCUMENT
    assert f"Open WebUI {version} " in DOCUMENT


def test_every_setting_of_the_compose_file_is_explained() -> None:
    explained = re.findall(r"`([A-Z_*]+)`", DOCUMENT)
    assert not [name for name in SERVICE["environment"] if not any(fnmatch(name, each) for each in explained)]
