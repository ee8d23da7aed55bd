"""Crystals as the plain arrays that the powder kernels read."""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from hxrd.crystal.crystal import Crystal
from hxrd.errors import Rejected
from hxrd.kernels.powder import Batch
from hxrd.physics.instrument import Instrument
from hxrd.physics.scattering import form_factor_coefficients, scattering_lengths


def pack(crystals: Sequence[Crystal], instrument: Instrument) -> Batch:
    """Lay crystals end to end, as the kernels read them.

    Raises
    ------
    Rejected
        A site without a scattering length or form factor.
    """
    names = list(chain.from_iterable([crystal.species for crystal in crystals]))
    rows = {name: row for row, name in enumerate(dict.fromkeys(names))}
    n_crystals, species = len(crystals), tuple(rows)
    site_start, operation_start = np.zeros((2, n_crystals + 1), np.int64)
    np.cumsum([len(crystal.species) for crystal in crystals], out=site_start[1:])
    np.cumsum([len(crystal.rotations) for crystal in crystals], out=operation_start[1:])
    xray = instrument.probe == "xray"
    return Batch(
        cells=np.array([crystal.cell for crystal in crystals], np.float64).reshape(n_crystals, 6),
        site_start=site_start,
        species=np.array([rows[name] for name in names], np.int64),
        positions=np.concatenate([crystal.positions for crystal in crystals], dtype=np.float64),
        occupancy=np.concatenate([crystal.occupancy for crystal in crystals], dtype=np.float64),
        b_iso=np.concatenate([crystal.b_iso for crystal in crystals], dtype=np.float64),
        operation_start=operation_start,
        rotations=np.concatenate([crystal.rotations for crystal in crystals], dtype=np.int8),
        translations=np.concatenate([crystal.translations for crystal in crystals], dtype=np.float64),
        scattering=(
            np.zeros(len(species), np.complex128)
            if xray
            else scattering_lengths(species, instrument.scattering_table)
        ),
        form_factor=form_factor_coefficients(species) if xray else np.zeros((len(species), 9)),
    )


def rejections(crystals: Sequence[Crystal], instrument: Instrument) -> list[str | None]:
    """Say of each crystal why `pack` would refuse it, None where it would not."""
    reasons: list[str | None] = []
    for crystal in crystals:
        try:
            _check_species(tuple(dict.fromkeys(crystal.species)), instrument)
            reasons.append(None)
        except Rejected as error:
            reasons.append(str(error))
    return reasons


def _check_species(species: tuple[str, ...], instrument: Instrument) -> None:
    if instrument.probe == "xray":
        form_factor_coefficients(species)
    else:
        scattering_lengths(species, instrument.scattering_table)
