"""What the gateway says of the requests that it served."""

from __future__ import annotations

import json
from typing import Any

from tests.real import Served


def accesses(real: Served) -> list[dict[str, Any]]:
    """The gateway's access log."""
    lines = real.gateway.log.read_text().splitlines()
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    return [entry for entry in entries if entry["logger"] == "gateway.access"]
