"""Errors that are the user's to mend: one sentence, no traceback, exit code 2."""


class UserError(ValueError):
    """Bad input; the message is one sentence that names the file or value, the expectation and the way out."""
