"""Serves requests from an immutable snapshot and touches no storage."""
