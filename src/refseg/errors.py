"""The one kind of error that a user can mend."""


class RefsegError(ValueError):
    """Input that cannot be used; the message is one sentence that names the cure.

    Commands print it without a traceback and exit with code 2. What no terminal shows, such as control characters of a
    stranger's file, is replaced.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(letter if letter.isprintable() else "�" for letter in message))


def first_line(fault: BaseException) -> str:
    """The reason that a library's error gives, without what follows; the error's type where it gives none."""
    lines = str(fault).strip().splitlines()
    return lines[0] if lines else type(fault).__name__
