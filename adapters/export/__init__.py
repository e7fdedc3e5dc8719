"""Hands a merged model on to other engines: as a folder for Ollama, as a GGUF file, or into an Ollama server.

    python -m adapters.export --base DIR --adapter DIR --to hf|gguf|ollama …

Always merged: newer versions of Ollama refuse adapters (ollama#14969). Runs where `adapters.merge` runs.
"""
