"""Crystals to powder patterns."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal
from hxrd.errors import Rejected
from hxrd.kernels import powder
from hxrd.kernels.profile import Grid, Resolution
from hxrd.physics.instrument import Instrument
from hxrd.physics.packing import PackedCrystal, pack


def simulate_patterns(
    crystals: Sequence[Crystal], instrument: Instrument
) -> tuple[NDArray[np.float32], list[str | None]]:
    """Simulate the powder pattern of each crystal, in parallel over the crystals.

    Parameters
    ----------
    crystals : sequence of Crystal
    instrument : Instrument
        Gives probe, wavelengths, resolution, scattering table and the 2θ grid.

    Returns
    -------
    intensity : ndarray of float32, shape (n_crystals, n_points)
        Each row divided by its maximum; a rejected crystal's row is zeros.
    reasons : list of str or None
        Why a crystal was rejected, None where it was not.
    """
    packed: list[PackedCrystal] = []
    reasons: list[str | None] = []
    for crystal in crystals:
        try:
            packed.append(pack(crystal, instrument))
            reasons.append(None)
        except Rejected as error:
            reasons.append(str(error))
    good = np.array([reason is None for reason in reasons], dtype=bool)
    grid = instrument.grid()
    intensity = np.zeros((len(crystals), len(grid)), np.float32)
    if packed:
        simulated = np.empty((len(packed), len(grid)), np.float32)
        powder.patterns(
            joined(packed),
            np.array(instrument.wavelengths),
            resolution_of(instrument),
            kernel_grid(instrument),
            instrument.probe == "xray",
            simulated,
        )
        intensity[good] = simulated
    for index in np.flatnonzero(good & (intensity.max(axis=1, initial=0) <= 0)):
        reasons[index] = "no reflection lies in the 2θ range"
    return intensity, reasons


def joined(packed: Sequence[PackedCrystal]) -> powder.Batch:
    """Lay packed crystals end to end, as the kernel reads them."""
    atoms = [one.atoms for one in packed]
    n_sites = np.cumsum([0] + [len(one.occupancy) for one in atoms])
    group_start = [one.group_start[:-1] + start for one, start in zip(atoms, n_sites, strict=False)]
    return powder.Batch(
        reciprocal_metrics=np.stack([one.reciprocal_metric for one in packed]),
        crystal_start=np.cumsum([0] + [len(one.group_b_iso) for one in atoms]).astype(np.int64),
        group_start=np.concatenate([*group_start, n_sites[-1:]]).astype(np.int64),
        group_b_iso=np.concatenate([one.group_b_iso for one in atoms]),
        group_scattering=np.concatenate([one.group_scattering for one in atoms]),
        group_form_factor=np.concatenate([one.group_form_factor for one in atoms]),
        positions=np.concatenate([one.positions for one in atoms]),
        occupancy=np.concatenate([one.occupancy for one in atoms]),
    )


def kernel_grid(instrument: Instrument) -> Grid:
    """Return the 2θ grid of an instrument in kernel form."""
    grid = instrument.grid()
    return Grid(float(grid[0]), float(instrument.two_theta[2]), len(grid))


def resolution_of(instrument: Instrument) -> Resolution:
    """Return the peak-shape parameters of an instrument in kernel form."""
    return Resolution(
        instrument.caglioti_u,
        instrument.caglioti_v,
        instrument.caglioti_w,
        instrument.lorentzian_x,
        instrument.lorentzian_y,
        instrument.axial_divergence,
    )
