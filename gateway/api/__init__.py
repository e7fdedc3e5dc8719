"""The HTTP edge: the only place with FastAPI, and the guard of the port."""
