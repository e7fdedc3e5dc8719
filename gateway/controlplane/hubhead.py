"""Which commit the main branch of a repository on the Hugging Face hub is at: that is what an engine fetches when it is
told the repository's name, and more can vLLM not be told."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Mapping

import httpx2
import orjson

log = logging.getLogger("gateway.adapters")

_WITHIN = 10.0  # seconds
_MAX_ANSWER = 4 << 20  # bytes; it lists the repository's files, too
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)


class HubHead:
    """`environ`: HF_ENDPOINT and HF_TOKEN count.  Proxies and certificates are those of the process's environment."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        endpoint = (environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self._endpoint = endpoint if endpoint.startswith(("http://", "https://")) else f"https://{endpoint}"
        token = environ.get("HF_TOKEN")
        self._headers = {"authorization": f"Bearer {token}"} if token else {}

    async def __call__(self, repo: str) -> str | None:
        """The commit; None when the hub does not say.  https://huggingface.co/docs/hub/api"""
        try:
            async with asyncio.timeout(_WITHIN):
                answer = await self._get(f"{self._endpoint}/api/models/{repo}/revision/main")
            commit = orjson.loads(answer)["sha"]
        except (TimeoutError, httpx2.HTTPError, httpx2.InvalidURL, ValueError, LookupError, TypeError) as error:
            log.warning("the hub does not say where the main branch of %s is: %s", repo, error or type(error).__name__)
            return None
        return commit if isinstance(commit, str) and _COMMIT.fullmatch(commit) else None

    async def _get(self, url: str) -> bytes:
        tls = await asyncio.to_thread(ssl.create_default_context)  # reads all authorities; requests do not wait for it
        async with (
            httpx2.AsyncClient(headers=self._headers, verify=tls, timeout=_WITHIN, follow_redirects=False) as client,
            client.stream("GET", url) as answer,
        ):
            answer.raise_for_status()
            body = b""
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > _MAX_ANSWER:
                    raise ValueError(f"its answer is longer than {_MAX_ANSWER >> 20} MiB")
            return body
