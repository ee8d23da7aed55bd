"""`hxrd peaks`: the reflections of one crystal."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hxrd.cli import options
from hxrd.errors import InputError, Rejected, UsageError

if TYPE_CHECKING:
    from hxrd.crystal.crystal import Crystal
    from hxrd.physics.instrument import Probe
    from hxrd.physics.reflections import Reflection


def _check_part(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if not 0 <= value <= 1:  # true of NaN as well, which click's ranges let pass
        raise click.BadParameter(f"{value:g} is no part of the strongest: give 0 to 1")
    return value


@click.command(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("cif", metavar="FILE.cif", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="A JSON list of objects instead of a table.")
@click.option(
    "--min-intensity",
    type=float,
    callback=_check_part,
    default=0.0,
    show_default=True,
    help="Leave out reflections weaker than this part of the strongest.",
)
@click.option(
    "--block",
    metavar="NAME|INDEX",
    help="Which data block: its collection code, else its name, or its place (from 0).  [default: first]",
)
@options.instrument_options
@options.logging_options
def peaks(
    cif: Path,
    as_json: bool,
    min_intensity: float,
    block: str | None,
    instrument: str,
    probe: "Probe | None",
    wavelength: str | None,
    two_theta: tuple[float, float, float] | None,
) -> None:
    """List the reflections of the crystal in FILE.cif, one line for each set of equivalents.

    2θ in degrees, d in Å, F² in fm² (neutrons) or electrons² (X-rays) for the cell of the file, with
    the Debye–Waller factor; the intensity is m·F²·L (neutrons) or m·F²·L·P (X-rays), not normalised.
    Systematic absences are left out.

    \b
    Example:
      hxrd peaks quartz.cif --probe xray --wavelength CuKa1 --two-theta 10 90 0.02
    """
    from hxrd.crystal.cif import crystals_from_cif
    from hxrd.physics import reflections

    chosen = options.resolve_instrument(instrument, probe, wavelength, two_theta)
    crystal = _choose(cif, list(crystals_from_cif(cif)), block)
    options.announce_compilation("powder.sticks")
    try:
        found = reflections.peaks(crystal, chosen)
    except Rejected as rejection:
        raise InputError(f"{cif}: {rejection}") from rejection
    if not found:
        raise InputError(
            f"{cif}: no reflection lies in the 2θ range: choose another --two-theta or --wavelength"
        )
    weakest = min_intensity * max(reflection.intensity for reflection in found)
    kept = [reflection for reflection in found if reflection.intensity >= weakest]
    click.echo(_as_json(kept) if as_json else _as_table(kept, chosen.probe))


def _choose(cif: Path, blocks: "Sequence[tuple[str, Crystal | Rejected]]", wanted: str | None) -> "Crystal":
    """Return the crystal of the wanted data block, or of the first."""
    names = [name for name, _ in blocks]
    if wanted is None:
        index = 0
        if len(blocks) > 1:
            options.logger.info(
                "%s has %d data blocks, this is %s; --block takes another", cif, len(blocks), names[0]
            )
    elif wanted in names:
        index = names.index(wanted)
    elif wanted.isdecimal() and int(wanted) < len(blocks):
        index = int(wanted)
    else:
        raise UsageError(f"{cif} has no data block {wanted!r}: it has {', '.join(names)}")
    crystal = blocks[index][1]
    if isinstance(crystal, Rejected):
        raise InputError(f"{cif}, block {names[index]}: {crystal}")
    return crystal


def _as_json(reflections: "Sequence[Reflection]") -> str:
    return json.dumps(
        [
            {
                "hkl": list(reflection.hkl),
                "multiplicity": reflection.multiplicity,
                "d_spacing": reflection.d_spacing,
                "two_theta": reflection.two_theta,
                "f_squared": reflection.f_squared,
                "intensity": reflection.intensity,
            }
            for reflection in reflections
        ],
        indent=None if not sys.stdout.isatty() else 1,
    )


def _as_table(reflections: "Sequence[Reflection]", probe: str) -> str:
    strongest = max((reflection.intensity for reflection in reflections), default=1.0)
    unit = "fm²" if probe == "neutron" else "e²"
    lines = [
        f"{'h':>4}{'k':>4}{'l':>4}{'m':>5}{'d/Å':>11}{'2θ/°':>11}{f'F²/{unit}':>14}{'I':>13}{'I/Imax':>9}"
    ]
    lines += [
        "{:4d}{:4d}{:4d}".format(*reflection.hkl)
        + f"{reflection.multiplicity:5d}{reflection.d_spacing:11.5f}{reflection.two_theta:11.4f}"
        + f"{reflection.f_squared:14.6g}{reflection.intensity:13.6g}"
        + f"{reflection.intensity / strongest:9.4f}"
        for reflection in reflections
    ]
    return "\n".join(lines)
