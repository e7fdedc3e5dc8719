"""The engine's environment, var/engine: vLLM, the libraries that train adapters, and our fix of its CPU kernels."""
