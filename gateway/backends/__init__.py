"""How to speak to a kind of server: one file a dialect, and this table."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.backends.base import Backend
from gateway.backends.ollama import Ollama
from gateway.backends.openai import OpenAI
from gateway.backends.vllm import VLLM

BACKENDS: Mapping[str, Backend] = {backend.kind: backend for backend in (OpenAI(), VLLM(), Ollama())}
