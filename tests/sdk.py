"""OpenAI's client for servers of this machine."""

from __future__ import annotations

from typing import Any

import openai


def openai_client(base_url: str, key: str, **settings: Any) -> openai.AsyncOpenAI:
    """It tries nothing twice unless it is told to, and reads no certificate authorities (tests/http.py)."""
    plain = openai.DefaultAsyncHttpxClient(verify=False)
    return openai.AsyncOpenAI(base_url=base_url, api_key=key, http_client=plain, **{"max_retries": 0, **settings})
