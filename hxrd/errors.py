"""What can go wrong, and the exit code that each kind of failure ends the program with."""


class HxrdError(Exception):
    """A failure told in one line: what, which file or identifier, what to do (exit code 1)."""

    exit_code = 1


class InputError(HxrdError):
    """An input that exists but cannot be used: empty, unreadable, corrupt, not what it should be."""


class UsageError(HxrdError):
    """An impossible option value, a path that does not exist, a needed option left out (exit code 2)."""

    exit_code = 2


class Rejected(HxrdError):
    """One entry (crystal or pattern) that cannot be used; the rest of the batch goes on.

    Parameters
    ----------
    reason : str
        Why, in a few words, without the name of the entry.
    """
