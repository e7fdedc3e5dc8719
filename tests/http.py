"""HTTP clients for servers of this machine.  They read no certificate authorities: that takes longer than most tests,
and half a processor where somebody asks again and again whether an engine has started."""

from __future__ import annotations

from typing import Any

import httpx2


def client(**settings: Any) -> httpx2.AsyncClient:
    """httpx's client."""
    return httpx2.AsyncClient(verify=False, **settings)


def get(url: str, **settings: Any) -> httpx2.Response:
    """One page."""
    return httpx2.get(url, verify=False, **settings)


def post(url: str, **settings: Any) -> httpx2.Response:
    """One answer."""
    return httpx2.post(url, verify=False, **settings)
