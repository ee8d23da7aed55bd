"""A crystal as the plain arrays that the powder kernels read."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal
from hxrd.physics.instrument import Instrument
from hxrd.physics.scattering import form_factor_coefficients, scattering_lengths


class Atoms(NamedTuple):
    """Atoms of one cell, sorted so that those of one group stand together.

    A group is what scatters alike at every angle: one species with one displacement parameter.

    Parameters
    ----------
    positions : ndarray, shape (n_sites, 3)
        Fractional coordinates.
    occupancy : ndarray, shape (n_sites,)
    group_start : ndarray of int64, shape (n_groups + 1,)
        Sites of group g are ``group_start[g]:group_start[g + 1]``.
    group_b_iso : ndarray, shape (n_groups,)
        Å².
    group_scattering : ndarray of complex128, shape (n_groups,)
        Scattering length in fm; zero for X-rays.
    group_form_factor : ndarray, shape (n_groups, 9)
        X-ray coefficients a1…a4, b1…b4, c; zeros for neutrons.
    """

    positions: NDArray[np.float64]
    occupancy: NDArray[np.float64]
    group_start: NDArray[np.int64]
    group_b_iso: NDArray[np.float64]
    group_scattering: NDArray[np.complex128]
    group_form_factor: NDArray[np.float64]


class PackedCrystal(NamedTuple):
    """What the kernels need of one crystal: reciprocal metric (Å⁻², (3, 3)) and its `Atoms`."""

    reciprocal_metric: NDArray[np.float64]
    atoms: Atoms


def pack(crystal: Crystal, instrument: Instrument) -> PackedCrystal:
    """Bring a crystal into kernel form.

    Raises
    ------
    Rejected
        A site without a scattering length or form factor.
    """
    names = sorted(set(crystal.species))
    kind = np.array([names.index(name) for name in crystal.species], dtype=np.float64)
    groups, of_site = np.unique(np.column_stack([kind, crystal.b_iso]), axis=0, return_inverse=True)
    of_site = of_site.ravel()
    order = np.argsort(of_site, kind="stable")
    species = tuple(names[int(index)] for index in groups[:, 0])
    xray = instrument.probe == "xray"
    n_groups = len(groups)
    atoms = Atoms(
        positions=np.ascontiguousarray(crystal.positions[order]),
        occupancy=np.ascontiguousarray(crystal.occupancy[order]),
        group_start=np.concatenate([[0], np.cumsum(np.bincount(of_site, minlength=n_groups))]).astype(
            np.int64
        ),
        group_b_iso=np.ascontiguousarray(groups[:, 1]),
        group_scattering=(
            np.zeros(n_groups, np.complex128)
            if xray
            else scattering_lengths(species, instrument.scattering_table)
        ),
        group_form_factor=form_factor_coefficients(species) if xray else np.zeros((n_groups, 9)),
    )
    return PackedCrystal(np.linalg.inv(crystal.metric).astype(np.float64), atoms)
