"""Frozen data and pure rules; standard library only.  Everything else in the gateway depends on this package."""
