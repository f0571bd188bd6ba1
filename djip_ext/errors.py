"""The one exception that users are meant to read."""


class DJIPError(ValueError):
    """An error that the user can correct.  The message is one line: the cause, then what to do.

    The command line prints the message alone; anything else that is raised is a bug and keeps its
    traceback.
    """


class Busy(DJIPError):
    """Another process is at work on the same thing, which will be done without this one.

    The command line exits with 75 (try again).
    """


def first_line(error: BaseException) -> str:
    """The first line of another library's exception; its type when it has no message."""
    return str(error).strip().split("\n")[0] or type(error).__name__
