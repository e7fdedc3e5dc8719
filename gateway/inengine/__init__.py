"""What runs inside the engine, in the engine's own environment: standard library only, nothing of the gateway.

The folder is put on the engine's PYTHONPATH, so the names of its modules must be nobody else's.
"""
