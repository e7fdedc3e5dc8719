"""Trains a LoRA adapter with peft: `python -m adapters.train --base DIR --data FILE --out DIR`.

Runs in the engine's environment (the `train` extra), as a process of its own: it is the only part of this package
that needs torch.
"""
