"""Merges adapters into their base model: `python -m adapters.merge --base DIR --adapter DIR --export DIR`.

The result is what peft's merge_and_unload() gives, bit by bit, but made tensor by tensor, so that it needs the memory
of one; then its logits are compared with those of the base model with its adapter. Runs in the engine's environment or
in one made for training: what reads (checkpoint, recipe, plan, companions) needs the standard library only, what
computes (compute, whole, agreement) needs torch, transformers and peft.
"""
