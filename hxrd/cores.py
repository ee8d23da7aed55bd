"""How many processor cores this process may use."""

import os


def available_cores() -> int:
    """Return the cores that the scheduler allows this process, or all where the system does not tell."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
