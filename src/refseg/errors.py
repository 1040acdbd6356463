"""The one kind of error that a user can mend."""


class RefsegError(ValueError):
    """Input that cannot be used; the message is one sentence that names the cure.

    Commands print it without a traceback and exit with code 2.
    """
