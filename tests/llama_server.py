"""llama.cpp's own HTTP server as a process: the third party of the tests that is nobody's fake.

python -m tests.llama_server MODEL.gguf PORT
"""

from __future__ import annotations

import signal
import sys

import xllamacpp

NAME = "smollm2-gguf"


def main(model: str, port: int) -> None:
    """Serves until it is killed."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {NAME}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx = 4096
    params.n_parallel = 2
    params.cpuparams.n_threads = 1
    params.warmup = False
    params.use_jinja = True
    params.embedding = False
    params.api_keys = ["sk-llama-third-party-0123456789"]
    server = xllamacpp.Server(params)  # serves while it is kept
    sys.stderr.write(f"{server.listening_address}\n")
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
