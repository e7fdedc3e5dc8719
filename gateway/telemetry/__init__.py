"""Metrics and logs: all their names in one place."""
