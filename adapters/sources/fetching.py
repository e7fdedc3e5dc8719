"""How fetching ends badly."""


class FetchError(Exception):
    """It could not be fetched; the text says what from where and why, without a secret. Trying again may help."""
