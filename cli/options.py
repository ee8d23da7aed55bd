"""Options that several commands share, defined once, and what they mean to logging and progress."""

import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hxrd.cores import available_cores
from hxrd.errors import UsageError

if TYPE_CHECKING:
    from hxrd.physics.instrument import Instrument, Probe

Command = TypeVar("Command", bound=Callable[..., Any])

SOME_REJECTED = 3  # exit code: done, but some inputs were rejected, and listed
TRACEBACKS = 5  # logging level of -vv
DEFAULT_INSTRUMENT = "paper"
LARGEST_SEED = 2**64 - 1

logger = logging.getLogger("hxrd")


# Logging ------------------------------------------------------------------------------------------


class _OneLine(logging.Formatter):
    """Messages as `hxrd: …`, problems as `hxrd: warning: …` and `hxrd: error: …`."""

    def format(self, record: logging.LogRecord) -> str:
        kind = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        record.message = f"hxrd: {kind}{record.getMessage()}"
        traceback = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return record.message + traceback


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Write to whatever `sys.stderr` is at the moment."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(_OneLine())

    @property
    def stream(self) -> Any:
        return sys.stderr


def configure_logging(verbosity: int = 0, log_file: Path | None = None) -> None:
    """Send hxrd's messages to stderr and, where asked for, to a file as well.

    Parameters
    ----------
    verbosity : int
        -1 errors only, 0 messages, 1 details, 2 and above tracebacks too.
    log_file : Path, optional
        Appended to, every message with its time.

    Raises
    ------
    UsageError
        The log file cannot be opened.
    """
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    levels = {-1: logging.ERROR, 0: logging.INFO, 1: logging.DEBUG}
    logger.setLevel(levels.get(max(verbosity, -1), TRACEBACKS))
    logger.propagate = False
    logger.addHandler(_Stderr())
    if log_file is not None:
        try:
            to_file = logging.FileHandler(log_file, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--log-file {log_file}: {error.strerror}") from error
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logger.addHandler(to_file)


@contextmanager
def progress(description: str, total: int | None, unit: str = "patterns") -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr (rate and time left) while the block runs.

    Nothing is drawn where stderr is closed or no terminal, or under ``-q``.

    Parameters
    ----------
    description : str
        What is going on, in a word or two.
    total : int or None
        How many are to be done; None where that is not known.
    unit : str
        What is counted.

    Yields
    ------
    callable
        To be called with the number of items done since the last call.
    """
    if sys.stderr is None or not sys.stderr.isatty() or logger.level >= logging.ERROR:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    class Rate(TextColumn):
        def render(self, task: Any) -> Any:
            task.fields["rate"] = f"{task.finished_speed or task.speed or 0:,.0f} {unit}/s"
            return super().render(task)

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, rate="")
        yield lambda count: bar.advance(task, count)


def _set_verbosity(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    # Called once for each of -v, -q and --log-file, in any order: gather, then configure.
    given = context.meta.setdefault("hxrd.logging", {})
    given[parameter.name] = value
    if len(given) == 3:
        verbosity = -1 if given["quiet"] else given["verbose"]
        configure_logging(verbosity, given["log_file"])


# Value types --------------------------------------------------------------------------------------


class BatchSize(click.ParamType):
    """`auto` or a positive whole number.

    Yields None for `auto`.
    """

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the number, or None for `auto`."""
        if value is None or value == "auto":
            return None
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"{value!r} is neither 'auto' nor a positive whole number", param, ctx)
        return number


def _check_device(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+(,\d+)*)?", value):
        raise click.BadParameter(f"{value!r} is none of auto, cpu, cuda, cuda:0,1…")
    return value


def _check_workers(context: click.Context, parameter: click.Parameter, value: int | None) -> int | None:
    if value is not None and value > (available := available_cores()):
        raise click.BadParameter(f"{value} threads are more than the {available} that this machine allows")
    return value


def _check_seed(context: click.Context, parameter: click.Parameter, value: int) -> int:
    if value > LARGEST_SEED:
        raise click.BadParameter(f"the largest is {LARGEST_SEED}")
    return value


# Options ------------------------------------------------------------------------------------------


def _stack(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


probe_option = click.option(
    "--probe", type=click.Choice(["neutron", "xray"]), help="Radiation; overrides the instrument's."
)
wavelength_option = click.option(
    "--wavelength",
    metavar="ANGSTROM|LINE",
    help="In Å, or a line name (CuKa, CuKa1, MoKa, …).",
)
two_theta_option = click.option(
    "--two-theta",
    type=float,
    nargs=3,
    metavar="START STOP STEP",
    help="Grid of 2θ in degrees, both ends included.",
)
instrument_option = click.option(
    "--instrument",
    default=DEFAULT_INSTRUMENT,
    show_default=True,
    metavar="NAME|FILE.toml",
    help="Preset (`hxrd info --instruments` lists them) or a file of your own.",
)
instrument_options = _stack(instrument_option, probe_option, wavelength_option, two_theta_option)

source_option = click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="SPEC",
    help="Where crystals come from, tried in order: cif:DIR, jsonl:FILE, prototypes, synthetic. "
    "Default: $HXRD_SOURCES, else the configuration file, else prototypes.",
)
force_option = click.option("--force", is_flag=True, help="Overwrite an existing output.")
resume_option = click.option(
    "--resume",
    is_flag=True,
    help="Finish an interrupted run; starts afresh where there is nothing to resume.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0),
    callback=_check_seed,
    default=0,
    show_default=True,
    metavar="N",
    help="Of all random numbers.",
)
augment_option = click.option(
    "--augment",
    metavar="NAME|FILE.toml",
    help="What measurements add to clean patterns: a preset or a file of your own.",
)
shard_size_option = click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Patterns in one file of the archive: what a kill can lose, and among what foreign phases "
    "are drawn.  [default: 4096, fewer if long]",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=1),
    callback=_check_workers,
    metavar="N",
    help="Processor threads.  [default: all]",
)
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda|cuda:N,…",
    callback=_check_device,
    help="Where the network runs; several GPUs as cuda:0,1.",
)
backend_option = click.option(
    "--backend",
    type=click.Choice(["auto", "native", "torch", "onnxruntime", "openvino"]),
    default="auto",
    show_default=True,
    help="What runs the network; auto is native on a CPU and torch on a GPU.",
)
precision_option = click.option(
    "--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True
)
batch_size_option = click.option(
    "--batch-size", type=BatchSize(), default="auto", show_default=True, help="Patterns at a time."
)

logging_options = _stack(
    click.option(
        "-v",
        "--verbose",
        count=True,
        expose_value=False,
        callback=_set_verbosity,
        help="More messages; -vv also tracebacks.",
    ),
    click.option(
        "-q", "--quiet", is_flag=True, expose_value=False, callback=_set_verbosity, help="Errors only."
    ),
    click.option(
        "--log-file",
        type=click.Path(dir_okay=False, path_type=Path),
        expose_value=False,
        callback=_set_verbosity,
        help="Append every message to this file.",
    ),
)


def announce_compilation(kernel: str) -> None:
    """Say why the first run takes longer, where a kernel's compiled code is not on disk yet."""
    from hxrd.kernels.compiled import must_compile

    if must_compile(kernel):
        logger.info("compiling the simulator for this machine: once, about half a minute")


def command_line() -> str:
    """Return the command as typed, for metadata; text that any file can hold."""
    words = [os.fsencode(word).decode(errors="replace") for word in sys.argv[1:]]
    return shlex.join(["hxrd", *words])


def default_output(path: Path, suffix: str) -> Path:
    """Return the input's path with another ending, as the name of an output that was not named.

    Raises
    ------
    UsageError
        The input has no name of its own (``.``, ``/``).
    """
    if not path.name:
        raise UsageError(f"{path} gives the output no name: name it with -o")
    return path.with_suffix(suffix)


def radiation(probe: str) -> str:
    """Return what a probe is called in a message."""
    return "neutrons" if probe == "neutron" else "X-rays"


def resolve_instrument(
    name: str,
    probe: "Probe | None" = None,
    wavelength: str | None = None,
    two_theta: tuple[float, float, float] | None = None,
) -> "Instrument":
    """Load an instrument, apply the explicit options, and echo it on stderr.

    Parameters
    ----------
    name : str
        Preset or TOML file.
    probe, wavelength, two_theta
        As given on the command line; None leaves the instrument's own.

    Returns
    -------
    Instrument

    Raises
    ------
    UsageError, InputError
        No such preset, an impossible wavelength or grid; a file that is no instrument.
    """
    from hxrd.physics.instrument import load_instrument, with_overrides

    instrument = with_overrides(load_instrument(name), probe, wavelength, two_theta)
    start, stop, step = instrument.two_theta
    logger.info(
        "instrument %s: %s, %.6g Å, 2θ %g to %g by %g degrees",
        instrument.name,
        radiation(instrument.probe),
        instrument.wavelength,
        start,
        stop,
        step,
    )
    return instrument
