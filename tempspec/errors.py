"""The one error that reaches a user as a line instead of a traceback (floor 0: standard library only)."""


class UserError(Exception):
    """Bad input from outside the program: a file, an option, a pair of models that do not fit.

    The message is one line that says what was expected, what was got, and what to do. The command line prints it and
    ends with exit code 2; library callers catch it as an ordinary exception.
    """
