"""The one exception that users are meant to read."""


class DJIPError(ValueError):
    """Something the user can mend.  The message is one line: the cause, then the cure.

    The command line prints the message alone; anything else that is raised is a bug and keeps its traceback.
    """


class Busy(DJIPError):
    """Another process is at work on the same thing; it will be done without us.  The command line exits with 75 (try again)."""


def first_line(error: BaseException) -> str:
    """What another library's exception says, in one line; its type when it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__
