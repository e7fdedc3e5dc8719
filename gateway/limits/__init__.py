"""Meters: who may go on and who must wait, decided at once for all that a request is charged with."""
