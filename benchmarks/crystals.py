"""The crystals of the benchmarks: published ones built from their asymmetric units, made ones from seeds."""

import dataclasses

import gemmi
import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal
from hxrd.crystal.operations import images_of_site, operations_from_group
from hxrd.errors import Rejected
from hxrd.physics.instrument import Instrument
from hxrd.physics.packing import rejections
from hxrd.sources.prototypes import PrototypeSource

Site = tuple[str, tuple[float, float, float]]

RIGHT = (90.0, 90.0, 90.0)
# Shortest distance in Å between the atoms of made crystals: dense, as oxides are.
APART = 1.7


def built(identifier: str, symbol: str, cell: tuple[float, ...], sites: list[Site]) -> Crystal:
    """Return the whole cell of an asymmetric unit; `symbol` names the setting as gemmi does."""
    group = gemmi.SpaceGroup(symbol)
    operations = operations_from_group(group.operations())
    bare = _bare(identifier, cell)
    images = [images_of_site(np.array(position), operations, bare.metric) for _, position in sites]
    n_sites = sum(map(len, images))
    return dataclasses.replace(
        bare,
        species=tuple(name for (name, _), orbit in zip(sites, images, strict=True) for _ in orbit),
        positions=np.concatenate(images),
        occupancy=np.ones(n_sites),
        b_iso=np.zeros(n_sites),
        space_group=group.number,
        rotations=operations[0],
        translations=operations[1],
    )


def _bare(identifier: str, cell: tuple[float, ...]) -> Crystal:
    """Return a cell without atoms."""
    return Crystal(identifier, np.array(cell, float), (), np.empty((0, 3)), np.empty(0), np.empty(0))


def silicon() -> Crystal:
    """Silicon, 8 atoms: Wyckoff (1963), Crystal Structures 1, 7–83."""
    return built("Si", "F d -3 m:2", (5.4307,) * 3 + RIGHT, [("Si", (1 / 8, 1 / 8, 1 / 8))])


def perovskite() -> Crystal:
    """CaTiO₃, 20 atoms, Pnma: Yamanaka, Hirai & Komatsu (2002), Am. Mineral. 87, 1183 (there in Pbnm)."""
    return built(
        "CaTiO3",
        "P n m a",
        (5.4224, 7.651, 5.4043, *RIGHT),
        [
            ("Ca", (0.0123, 0.25, 0.9916)),
            ("Ti", (0.0, 0.0, 0.5)),
            ("O", (0.4687, 0.25, 0.0586)),
            ("O", (0.288, 0.0371, 0.713)),
        ],
    )


def garnet() -> Crystal:
    """Grossular Ca₃Al₂Si₃O₁₂, 160 atoms, Ia-3d: Novak & Gibbs (1971), Am. Mineral. 56, 791."""
    return built(
        "garnet",
        "I a -3 d",
        (11.845,) * 3 + RIGHT,
        [
            ("Ca", (1 / 8, 0.0, 1 / 4)),
            ("Al", (0.0, 0.0, 0.0)),
            ("Si", (3 / 8, 0.0, 1 / 4)),
            ("O", (0.03808, 0.04493, 0.6514)),
        ],
    )


def monoclinic() -> Crystal:
    """A made P2₁/c crystal of 60 atoms in general positions, with the cell and formula of Y₄Al₂O₉."""
    species = ["Y"] * 4 + ["Al"] * 2 + ["O"] * 9
    return _made("P21/c", "P 1 21/c 1", (7.38, 10.47, 11.13, 90.0, 108.6, 90.0), species, seed=1)


def triclinic_p1(n_atoms: int, volume: float, seed: int) -> Crystal:
    """A made P1 crystal of `n_atoms` random atoms in a triclinic cell of `volume` Å³, no symmetry."""
    angles = (83.0, 97.0, 104.0)
    shape = _bare("", (1.0, 1.13, 1.29, *angles)).volume
    edge = (volume / shape) ** (1 / 3)
    species = [("Ca", "Ti", "Si", "O")[i % 4] for i in range(n_atoms)]
    cell = (edge, 1.13 * edge, 1.29 * edge, *angles)
    return _made(f"P1, {n_atoms} atoms, {volume:g} Å³", "P 1", cell, species, seed)


def _made(identifier: str, symbol: str, cell: tuple[float, ...], species: list[str], seed: int) -> Crystal:
    """Draw general positions one by one, none nearer than `APART` to what stands already."""
    random = np.random.default_rng(seed)
    operations = operations_from_group(gemmi.SpaceGroup(symbol).operations())
    metric = _bare(identifier, cell).metric
    placed = np.empty((0, 3))
    sites: list[Site] = []
    while len(sites) < len(species):
        position = random.random(3)
        orbit = (operations[0] @ position + operations[1]) % 1
        if _nearest(orbit, placed, metric) > APART and _nearest(orbit, orbit, metric) > APART:
            placed = np.concatenate([placed, orbit])
            sites.append((species[len(sites)], (position[0], position[1], position[2])))
    return built(identifier, symbol, cell, sites)


def _nearest(one: NDArray[np.float64], other: NDArray[np.float64], metric: NDArray[np.float64]) -> float:
    """Shortest distance in Å between two sets of points, none with itself; infinity where there is none."""
    apart = one[:, None] - other[None]
    apart -= np.round(apart)
    lengths = np.sqrt(np.einsum("ijk,kl,ijl->ij", apart, metric, apart))
    return float(lengths[lengths > 1e-9].min(initial=np.inf))


def strained(crystal: Crystal, factor: float) -> Crystal:
    """Return the crystal with its edges stretched by `factor`."""
    stretch = np.array([factor] * 3 + [1.0] * 3)
    return dataclasses.replace(crystal, cell=crystal.cell * stretch)


def copies_of(crystal: Crystal, number: int) -> list[Crystal]:
    """Return the crystal so many times, each with a slightly different cell."""
    return [strained(crystal, 1 + 1e-4 * i) for i in range(number)]


def mixed(number: int, instrument: Instrument) -> list[Crystal]:
    """Return so many crystals of all sizes: prototypes again and again, with slightly different cells."""
    readable, _ = prototypes()
    reasons = rejections(readable, instrument)
    good = [crystal for crystal, reason in zip(readable, reasons, strict=True) if reason is None]
    return [strained(good[i % len(good)], 1 + 1e-4 * (i // len(good))) for i in range(number)]


def prototypes() -> tuple[list[Crystal], dict[str, str]]:
    """Return the AFLOW prototypes, primitive as AFLOW gives them, and why some cannot be read."""
    source = PrototypeSource()
    crystals, rejected = [], {}
    for identifier in source.identifiers():
        try:
            crystals.append(source.get(identifier))
        except Rejected as error:
            rejected[identifier] = str(error)
    return crystals, rejected


def conventional(crystal: Crystal) -> Crystal:
    """Return the crystal in the conventional cell that moyopy finds, with that cell's operations."""
    import moyopy

    from hxrd.crystal.symmetry import find_symmetry

    kinds = sorted(set(crystal.species))
    cell = moyopy.Cell(
        np.linalg.cholesky(crystal.metric).tolist(),
        crystal.positions.tolist(),
        [kinds.index(name) for name in crystal.species],
    )
    found = moyopy.MoyoDataset(cell, symprec=1e-2).std_cell
    basis = np.array(found.basis)
    lengths = np.linalg.norm(basis, axis=1)
    cosines = [basis[i] @ basis[j] / (lengths[i] * lengths[j]) for i, j in ((1, 2), (0, 2), (0, 1))]
    n_sites = len(found.numbers)
    return find_symmetry(
        Crystal(
            crystal.identifier,
            np.array([*lengths, *np.degrees(np.arccos(cosines))]),
            tuple(kinds[number] for number in found.numbers),
            np.array(found.positions),
            np.ones(n_sites),
            np.zeros(n_sites),
        ),
        1e-2,
    )
