"""The `hxrd` command: a group that imports a command only when it is called, and the exit codes."""

import errno
import importlib
import io
import logging
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import click

from hxrd import __version__
from hxrd.cli.options import TRACEBACKS, configure_logging
from hxrd.errors import HxrdError

# name: (where the click command lives, one line for `hxrd --help`)
COMMANDS: dict[str, tuple[str, str]] = {
    "simulate": ("hxrd.cli.simulate:simulate", "Simulate one powder pattern for each identifier of a file."),
    "classify": ("hxrd.cli.classify:classify", "Rank the space groups and Bravais lattice of each pattern."),
    "generate": (
        "hxrd.cli.generate:generate",
        "Make synthetic crystals by space group, and their patterns.",
    ),
    "peaks": ("hxrd.cli.peaks:peaks", "List the reflections of one crystal (CIF)."),
    "train": ("hxrd.cli.train:train", "Train a classifier on an archive of patterns."),
    "info": ("hxrd.cli.info:info", "Say what an archive, model or result holds; describe this machine."),
    "plot": ("hxrd.cli.plot:plot", "Draw patterns, or the class distribution, of an archive."),
    "models": ("hxrd.cli.models:models", "List models, and import the released ones."),
}

logger = logging.getLogger("hxrd")


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised like Ctrl-C so that locks are released and half-written files removed."""


class LazyGroup(click.Group):
    """A click group whose commands are imported only when one is called.

    Parameters
    ----------
    *args, **kwargs
        As `click.Group`.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command, or None where there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from their one-line summaries, importing none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hxrd", message="%(prog)s %(version)s")
def hxrd() -> None:
    """Space groups and Bravais lattices from powder diffraction patterns, at scale.

    Angles are 2θ in degrees, lengths in Å, scattering lengths in fm. stdout carries the results,
    stderr everything else. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some inputs were
    rejected, 130/143 interrupted.

    \b
    Example:
      hxrd simulate ids.txt -o patterns.zarr
      hxrd classify patterns.zarr --topk 5
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command line without the program's name; `sys.argv` where left out.

    Returns
    -------
    int
        0 done, 1 failed, 2 wrong usage, 3 done with rejected inputs, 130/143 interrupted.
    """
    configure_logging()
    _write_any_text()
    previous = _catch_sigterm()
    try:
        # Commands return their exit code, or None for 0.
        outcome = hxrd.main(args=arguments, prog_name="hxrd", standalone_mode=False)
        return outcome if isinstance(outcome, int) else 0
    except BaseException as error:
        return _exit_code(error)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _exit_code(error: BaseException) -> int:
    """Tell `error` in one line on stderr and return the exit code that belongs to it."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return 2
    if isinstance(error, SystemExit):  # how click ends a run whose reader closed the pipe
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        terminated = isinstance(error, Terminated) or isinstance(error.__cause__, Terminated)
        logger.warning("terminated" if terminated else "interrupted")
        return 143 if terminated else 130
    if isinstance(error, click.ClickException):
        logger.error("%s", _one_line(_usage_message(error)))
        return error.exit_code
    logger.error("%s", _one_line(_message(error)), exc_info=error if logger.level <= TRACEBACKS else None)
    return error.exit_code if isinstance(error, HxrdError) else 1


def _message(error: BaseException) -> str:
    """Say what went wrong and what to do about it."""
    if isinstance(error, HxrdError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory: try a smaller --batch-size or fewer --workers"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {error.filename}" if error.filename else ""
        return (
            f"the disk is full{where}: free some space, then rerun (with --resume where the command has it)"
        )
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return f"internal error, {type(error).__name__}: {error} (rerun with -vv for the traceback)"


def _usage_message(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    hint = f" (see '{context.command_path} --help')" if context is not None else ""
    return error.format_message() + hint


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _write_any_text() -> None:
    """Let stdout show `?` for a character that its encoding lacks, as a Latin-1 terminal's does."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _catch_sigterm() -> Any:
    """Turn SIGTERM into `Terminated`; return the handler it replaces, or None outside the main thread."""
    try:
        return signal.signal(signal.SIGTERM, _raise_terminated)
    except ValueError:
        return None


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated


if __name__ == "__main__":
    sys.exit(main())
