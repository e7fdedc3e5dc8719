"""What ends a merge or an export, in a sentence for the person who asked for it."""


class MergeError(Exception):
    """It cannot be done, or went wrong; the text says what, where, and what to do."""


class NotStreamableError(Exception):
    """The adapter changes the model in a way that only peft itself can merge; the text says which."""
