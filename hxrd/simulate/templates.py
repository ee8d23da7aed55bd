"""New crystals of a known structure type: elements exchanged, cell strained, free coordinates moved.

Every change respects the space group of the template, so its label stays right.
"""

from dataclasses import dataclass, replace

import gemmi
import msgspec
import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal
from hxrd.crystal.symmetry import find_symmetry
from hxrd.errors import InputError, Rejected

_LARGEST_MAP = 2_000_000  # operations × positions; beyond it only elements, scale and B vary
_SAME_POSITION = 0.02  # fractional


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
    rotations : ndarray, shape (n_operations, 3, 3)
    inverse_rotations : ndarray, shape (n_operations, 3, 3)
    image : ndarray, shape (n_operations, n_positions), or None
        Which position each operation sends a position to; None where only elements, scale and B may vary.
    position_of_site : ndarray, shape (n_sites,)
        Species that share a position move together.
    orbit_size : ndarray, shape (n_positions,)
    """

    crystal: Crystal
    rotations: NDArray[np.float64]
    inverse_rotations: NDArray[np.float64]
    image: NDArray[np.int32] | None
    position_of_site: NDArray[np.int64]
    orbit_size: NDArray[np.float64]


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
    rotations = found.rotations.astype(np.float64) if image is not None else np.eye(3)[None]
    orbit_size = (
        np.array([len(np.unique(column)) for column in image.T], dtype=np.float64)
        if image is not None
        else np.ones(len(positions))
    )
    return Template(
        crystal=crystal,
        rotations=rotations,
        inverse_rotations=np.linalg.inv(rotations).astype(np.float64),
        image=image,
        position_of_site=position_of_site,
        orbit_size=orbit_size,
    )


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
        self.elements = np.array(elements)
        most = max((len(set(template.crystal.species)) for template in templates), default=0)
        if len(set(elements)) < most:
            raise InputError(
                f"{len(set(elements))} elements to put in are fewer than the {most} of a template"
            )

    def draw(self, index: int, rng: np.random.Generator) -> Crystal:
        """Return a variation of one template; the same generator state gives the same crystal."""
        template, settings = self.templates[index], self.settings
        crystal = template.crystal
        exchange = rng.random() < settings.exchange_probability
        return replace(
            crystal,
            species=self._exchanged(crystal.species, rng) if exchange else crystal.species,
            cell=_cell_from_metric(self._strained_metric(template, rng)),
            positions=self._moved(template, rng),
            b_iso=self._displacement_parameters(crystal, rng),
        )

    def _exchanged(self, species: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
        old = sorted(set(species))
        new: list[str] = []
        while len(new) < len(old):
            element = str(self.elements[rng.integers(len(self.elements))])
            if element not in new:
                new.append(element)
        exchange = dict(zip(old, new, strict=True))
        return tuple(exchange[name] for name in species)

    def _strained_metric(self, template: Template, rng: np.random.Generator) -> NDArray[np.float64]:
        """Metric tensor after a random strain, averaged over the point group so that its system stays."""
        strain = rng.normal(0.0, self.settings.strain_sigma, (3, 3))
        strain = np.eye(3) + (strain + strain.T) / 2
        scale = np.exp(rng.normal(0.0, self.settings.scale_sigma))
        metric = template.crystal.metric
        if len(template.rotations) == 1 and template.image is None:
            return metric * scale**2
        basis = np.linalg.cholesky(metric)
        strained = basis @ strain @ strain @ basis.T
        rotations = template.rotations
        averaged = np.einsum("nki,kl,nlj->ij", rotations, strained, rotations) / len(rotations)
        return averaged * scale**2

    def _moved(self, template: Template, rng: np.random.Generator) -> NDArray[np.float64]:
        """Positions after a random move of every orbit that the site symmetry allows."""
        crystal, image = template.crystal, template.image
        if image is None or self.settings.displacement == 0:
            return crystal.positions
        basis = np.linalg.cholesky(crystal.metric)
        moves = rng.normal(0.0, self.settings.displacement, (len(template.orbit_size), 3)) @ np.linalg.inv(
            basis
        )
        averaged = np.einsum("nij,npj->pi", template.inverse_rotations, moves[image]) / len(image)
        averaged *= np.sqrt(template.orbit_size)[:, None]  # averaging over the orbit shrank them
        return crystal.positions + averaged[template.position_of_site]

    def _displacement_parameters(self, crystal: Crystal, rng: np.random.Generator) -> NDArray[np.float64]:
        if rng.random() >= self.settings.b_iso_probability:
            return crystal.b_iso
        return np.full(len(crystal.b_iso), np.round(rng.uniform(0.0, self.settings.b_iso_max), 3))


def _cell_from_metric(metric: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b, c = np.sqrt(np.diag(metric))
    cosines = np.array([metric[1, 2] / (b * c), metric[0, 2] / (a * c), metric[0, 1] / (a * b)])
    return np.array([a, b, c, *np.degrees(np.arccos(np.clip(cosines, -1, 1)))])


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
