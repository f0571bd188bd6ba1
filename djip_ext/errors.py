"""The one exception that users are meant to read."""


class DJIPError(ValueError):
    """Something the user can mend.  The message is one line: the cause, then the cure.

    The command line prints the message alone; anything else that is raised is a bug and keeps its traceback.
    """
