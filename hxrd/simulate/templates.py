"""New crystals of a known structure type: elements exchanged, cell strained, free coordinates moved.

Every change respects the space group of the template, so its label stays right.
"""

from dataclasses import dataclass

import gemmi
import msgspec
import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal
from hxrd.crystal.symmetry import find_symmetry
from hxrd.errors import InputError, Rejected
from hxrd.kernels.template import VariedTemplate, vary

_LARGEST_MAP = 2_000_000  # operations × positions; beyond it only elements, scale and B vary
_SAME_POSITION = 0.02  # fractional
_SEEDS = 2**64
_ONLY = np.uint64(0)
_METRIC_PLACES = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


class TemplateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a template is varied.

    Parameters
    ----------
    exchange_probability : float
        Share of the patterns whose elements are exchanged at random; the others keep theirs.
    scale_sigma : float
        Standard deviation of the logarithm of the cell's linear scale.
    strain_sigma : float
        Standard deviation of each strain component that the crystal system leaves free.
    displacement : float
        Standard deviation in Å of the moves along each free coordinate.
    b_iso_probability, b_iso_max : float
        Share of the patterns given a displacement parameter, drawn evenly up to so many Å².
    """

    exchange_probability: float = 0.7
    scale_sigma: float = 0.08
    strain_sigma: float = 0.02
    displacement: float = 0.1
    b_iso_probability: float = 0.5
    b_iso_max: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn; msgspec reports a ValueError as a validation error."""
        for name in ("exchange_probability", "b_iso_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1]")
        for name in ("scale_sigma", "strain_sigma", "displacement", "b_iso_max"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be at least 0")


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """A crystal with what is needed to vary it.

    Parameters
    ----------
    crystal : Crystal
        With the operations of its group.
    image : ndarray, shape (n_operations, n_positions), or None
        Which position each operation sends a position to; None where only elements, scale and B may vary.
    arrays : VariedTemplate
        What the compiled variation reads.
    kinds : tuple of str
        The different species, in alphabetical order.
    kind_of_site : ndarray of int64, shape (n_sites,)
    """

    crystal: Crystal
    image: NDArray[np.int32] | None
    arrays: VariedTemplate
    kinds: tuple[str, ...]
    kind_of_site: NDArray[np.int64]


def make_template(crystal: Crystal) -> Template:
    """Find the operations of a crystal and where each sends the atoms.

    Where the symmetry found is not the space group that the record declares, or the cell is a supercell
    whose lattice lacks some of the group's rotations, or an operation does not bring the atoms upon each
    other, only the elements, the scale and B may vary: nothing else is sure to keep the label right.
    """
    found = find_symmetry(crystal)
    trusted = found.space_group == crystal.space_group and _has_all_rotations(found)
    positions, position_of_site = _distinct_positions(crystal.positions)
    image = _images(found, positions) if trusted else None
    kinds, kind_of_site = np.unique(np.array(crystal.species), return_inverse=True)
    orbit, move = _free_moves(found, image, position_of_site)
    arrays = VariedTemplate(
        basis=np.linalg.cholesky(crystal.metric),
        average=_metric_average(found.rotations.astype(np.float64)) if image is not None else np.eye(6),
        is_trusted=int(image is not None),
        positions=np.ascontiguousarray(crystal.positions, dtype=np.float64),
        orbit=orbit,
        n_orbits=int(orbit.max()) + 1,
        move=move,
        b_iso=np.ascontiguousarray(crystal.b_iso, dtype=np.float64),
        n_kinds=len(kinds),
    )
    return Template(crystal, image, arrays, tuple(kinds.tolist()), kind_of_site.ravel().astype(np.int64))


def _metric_average(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix (6, 6) that averages g11 g22 g33 g23 g13 g12 over rotations, shape (n, 3, 3)."""
    average = np.empty((6, 6))
    for column, (i, j) in enumerate(_METRIC_PLACES):
        unit = np.zeros((3, 3))
        unit[i, j] = unit[j, i] = 1.0
        mean = np.einsum("nki,kl,nlj->ij", rotations, unit, rotations) / len(rotations)
        average[:, column] = [mean[place] for place in _METRIC_PLACES]
    return average


def _free_moves(
    crystal: Crystal, image: NDArray[np.int32] | None, position_of_site: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the orbit of every site, and what takes a Cartesian move of the orbit to the site's own.

    The move of an orbit's first position is averaged over the operations that leave it in place; another
    position moves as the operation turns it that leads there.
    """
    n_sites = len(position_of_site)
    if image is None:
        return np.zeros(n_sites, dtype=np.int64), np.zeros((n_sites, 3, 3))
    rotations = crystal.rotations.astype(np.float64)
    first = image.min(axis=0)
    orbit_numbers, orbit = np.unique(first, return_inverse=True)
    to_fractional = np.linalg.inv(np.linalg.cholesky(crystal.metric)).T
    kept = np.stack([rotations[image[:, start] == start].mean(axis=0) for start in orbit_numbers])
    leads = np.array([np.argmax(image[:, first[place]] == place) for place in range(image.shape[1])])
    move = rotations[leads] @ kept[orbit.ravel()] @ to_fractional
    return orbit.ravel()[position_of_site].astype(np.int64), np.ascontiguousarray(move[position_of_site])


def _has_all_rotations(crystal: Crystal) -> bool:
    """Whether the point group found is that of the space group, and not a subgroup of it."""
    whole = gemmi.get_spacegroup_reference_setting(crystal.space_group).operations()
    return len(np.unique(crystal.rotations, axis=0)) == len(whole.sym_ops)


def _distinct_positions(positions: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    wrapped = np.round(positions % 1.0, 4) % 1.0
    distinct, index = np.unique(wrapped, axis=0, return_inverse=True)
    return distinct, index.ravel()


def _images(crystal: Crystal, positions: NDArray[np.float64]) -> NDArray[np.int32] | None:
    from scipy.spatial import cKDTree

    if len(crystal.rotations) * len(positions) > _LARGEST_MAP:
        return None
    moved = np.einsum("nij,pj->npi", crystal.rotations.astype(np.float64), positions)
    moved += crystal.translations[:, None, :]
    distance, image = cKDTree(positions, boxsize=1.0).query(moved % 1.0 % 1.0)
    return image.astype(np.int32) if distance.max() < _SAME_POSITION else None


class TemplateSampler:
    """Draws varied crystals from templates.

    Parameters
    ----------
    templates : list of Template
    settings : TemplateSettings
    elements : list of str
        Species that may be put in, as often as they stand here.

    Raises
    ------
    InputError
        A template has more species than there are elements to put in.
    """

    def __init__(self, templates: list[Template], settings: TemplateSettings, elements: list[str]):
        self.templates = templates
        self.settings = settings
        self._names, pool = np.unique(np.array(elements), return_inverse=True)
        self._pool = pool.ravel().astype(np.int64)
        self._numbers = np.array([getattr(settings, name) for name in settings.__struct_fields__])
        most = max((len(template.kinds) for template in templates), default=0)
        self._pool_ranges = [np.tile([0, len(pool)], (n_kinds, 1)) for n_kinds in range(most + 1)]
        if len(set(elements)) < most:
            raise InputError(
                f"{len(set(elements))} elements to put in are fewer than the {most} of a template"
            )

    def draw(self, index: int, rng: np.random.Generator) -> Crystal:
        """Return a variation of one template; the same generator state gives the same crystal."""
        return self.draw_seeded(index, int(rng.integers(_SEEDS, dtype=np.uint64)))

    def draw_seeded(self, index: int, seed: int) -> Crystal:
        """Return a variation of one template; the seed, from 0 to 2⁶⁴ - 1, decides all of it."""
        template = self.templates[index]
        crystal = template.crystal
        n_sites = len(template.kind_of_site)
        chosen = np.empty(len(template.kinds), dtype=np.int64)
        cell, positions, b_iso = np.empty(6), np.empty((n_sites, 3)), np.empty(n_sites)
        pool_range = self._pool_ranges[len(template.kinds)]
        vary(
            template.arrays,
            self._numbers,
            self._pool,
            pool_range,
            np.uint64(seed),
            _ONLY,
            _ONLY,
            chosen,
            cell,
            positions,
            b_iso,
        )
        species = crystal.species
        if chosen[0] >= 0:
            names = [self._names[element] for element in chosen.tolist()]
            species = tuple([names[kind] for kind in template.kind_of_site.tolist()])
        return Crystal(
            crystal.identifier,
            cell,
            species,
            positions,
            crystal.occupancy,
            b_iso,
            crystal.space_group,
            crystal.rotations,
            crystal.translations,
        )


def templates_from(crystals: list[Crystal]) -> tuple[list[Template], list[str]]:
    """Return the templates of all crystals, and the element pool drawn from them.

    Raises
    ------
    Rejected
        There is no crystal at all.
    """
    if not crystals:
        raise Rejected("no crystals to make templates of")
    templates = [make_template(crystal) for crystal in crystals]
    pool = [name for crystal in crystals for name in sorted(set(crystal.species))]
    return templates, pool
