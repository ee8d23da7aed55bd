"""Known crystals varied at random, by name: ``NAME~17`` is the 17th variation of all, and one of NAME."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal
from hxrd.crystal.synthetic import NumberedNames
from hxrd.crystal.synthetic_table import element_names, tables
from hxrd.errors import InputError, Rejected
from hxrd.kernels.template import roominess, vary
from hxrd.simulate.templates import Template, TemplateSettings, make_template
from hxrd.sources import SourceChain, UnknownIdentifier

USUAL = TemplateSettings(scale_sigma=0.03)
"""As in training, but for the scale: the volume follows the elements by itself."""

ATTEMPTS = 60
_WITHOUT_EXCHANGE = 45  # from this attempt on, a crystal keeps its elements
_FIRST_GROWTH, _MORE_GROWTH = 1.1, 0.02
_CLOSER = 0.95  # of their own smallest distance, where that is below the limit
_POOL_SIZE = 256  # elements that may stand for one, as often as they are to be drawn
_STAND_INS = {"D": "H"}

logger = logging.getLogger(__name__)


class TemplateSource:
    """Variations of known crystals that keep their space group and sane distances.

    Elements are exchanged for such as stand in their place in other crystals, the volume follows their
    size, the cell is strained within its crystal system and free coordinates move within their site
    symmetry. Where atoms come nearer than `hxrd.crystal.synthetic.smallest_distance`, the cell is widened
    a little, or all is drawn again; where nothing helps, the crystal keeps its elements, and its atoms may
    be as near as they are in it, or to 0.95 of that.

    Parameters
    ----------
    identifiers : sequence of str
        The crystals to vary, in turn.
    chain : SourceChain
        Where they are.
    seed : int
    settings : TemplateSettings, optional

    Raises
    ------
    InputError
        One of them is not in the sources, or none can be varied.
    """

    def __init__(
        self,
        identifiers: Sequence[str],
        chain: SourceChain,
        seed: int,
        settings: TemplateSettings = USUAL,
    ) -> None:
        self._specification = f"templates of {', '.join(chain.describe())}"
        self._seed = seed
        self._numbers = np.array([getattr(settings, name) for name in settings.__struct_fields__])
        self._templates = _usable_templates(identifiers, chain)
        self._names = [template.crystal.identifier for template in self._templates]
        self._elements = [_element_numbers(template) for template in self._templates]
        self._pools = _pools()
        self._own_room = [_own_room(*pair) for pair in zip(self._templates, self._elements, strict=True)]

    def identifiers(self, number: int) -> NumberedNames:
        """Return the names of so many variations; the crystals take turns."""
        return NumberedNames(self._named, range(number))

    def _named(self, numbers: range) -> list[str]:
        return [f"{self._names[number % len(self._names)]}~{number}" for number in numbers]

    def get(self, identifier: str) -> Crystal:
        """Return one variation (see `hxrd.sources.source.Source.get`)."""
        name, _, digits = identifier.rpartition("~")
        number = int(digits) if digits.isdecimal() else -1
        index = number % len(self._names)
        if number < 0 or self._names[index] != name:
            raise UnknownIdentifier("not one of the variations")
        return self._varied(index, number, identifier)

    def get_many(self, identifiers: Sequence[str]) -> list[Crystal]:
        """Return many variations."""
        return [self.get(identifier) for identifier in identifiers]

    def describe(self) -> str:
        """Return what is varied."""
        return self._specification

    def _varied(self, index: int, number: int, identifier: str) -> Crystal:
        template, own = self._templates[index], self._elements[index]
        crystal = template.crystal
        table = tables()
        chosen = np.empty(len(own), dtype=np.int64)
        n_sites = len(crystal.species)
        cell, positions, b_iso = np.empty(6), np.empty((n_sites, 3)), np.empty(n_sites)
        pool_range = np.stack([own * _POOL_SIZE, (own + 1) * _POOL_SIZE], axis=1)
        settings = self._numbers.copy()
        seed, count, needed = np.uint64(self._seed), np.uint64(number), 1.0
        for attempt in range(ATTEMPTS):
            if attempt == _WITHOUT_EXCHANGE:
                settings[0] = 0.0
                needed = self._own_room[index]
            vary(
                template.arrays,
                settings,
                self._pools,
                pool_range,
                seed,
                count,
                np.uint64(attempt),
                chosen,
                cell,
                positions,
                b_iso,
            )
            elements = np.where(chosen >= 0, chosen, own)
            if settings[0] > 0 and len(set(elements.tolist())) < len(own):  # two species became one
                continue
            _follow_sizes(cell, template, own, elements, table.atom_volume)
            of_site = elements[template.kind_of_site]
            closest = roominess(
                template.arrays, of_site, table.nearest, crystal.occupancy, cell, positions, needed
            )
            closest /= needed
            if closest**-1.5 <= _FIRST_GROWTH + _MORE_GROWTH * attempt:
                cell[:3] *= closest**-0.5 * (1 + 1e-9)
                return _crystal(template, identifier, chosen, cell, positions, b_iso)
        raise Rejected(f"no variation with sane distances was found in {ATTEMPTS} attempts")


def _usable_templates(identifiers: Sequence[str], chain: SourceChain) -> list[Template]:
    """Return the templates whose symmetry is sure, and say how many are not."""
    templates = []
    for identifier in identifiers:
        try:
            templates.append(make_template(chain.get(identifier)))
        except Rejected as error:
            raise InputError(f"template {identifier}: {error}; give its source with --source") from error
    sure = [template for template in templates if template.image is not None]
    if not sure:
        raise InputError("the atoms of no template have the space group that its record declares")
    if len(sure) < len(templates):
        logger.warning(
            "left out %d of %d templates whose atoms have another space group than their record says",
            len(templates) - len(sure),
            len(templates),
        )
    return sure


def _element_numbers(template: Template) -> NDArray[np.int64]:
    """Return the table's number of each species' element; of one that it lacks, that of a similar size."""
    names = element_names()
    numbers = []
    for kind in template.kinds:
        element = kind.lstrip("0123456789")
        element = _STAND_INS.get(element, element)
        numbers.append(names.index(element) if element in names else names.index("Ca"))
    return np.array(numbers, dtype=np.int64)


def _own_room(template: Template, own: NDArray[np.int64]) -> float:
    """Return the least room that a crystal's own atoms are to keep, at most 1 (see `roominess`)."""
    crystal = template.crystal
    of_site = own[template.kind_of_site]
    room = roominess(
        template.arrays, of_site, tables().nearest, crystal.occupancy, crystal.cell, crystal.positions, 1.0
    )
    return float(room) if room >= 1.0 else float(room) * _CLOSER**2


def _pools() -> NDArray[np.int64]:
    """Return, for each element in turn, what may stand for it, as often as it is to be drawn."""
    shares = (np.arange(_POOL_SIZE) + 0.5) / _POOL_SIZE
    return np.concatenate([np.searchsorted(row, shares) for row in tables().substitute]).astype(np.int64)


def _follow_sizes(
    cell: NDArray[np.float64],
    template: Template,
    own: NDArray[np.int64],
    elements: NDArray[np.int64],
    atom_volume: NDArray[np.float64],
) -> None:
    """Scale the cell by the size of its new atoms over that of its own."""
    amounts = np.bincount(template.kind_of_site, weights=template.crystal.occupancy)
    cell[:3] *= (amounts @ atom_volume[elements] / (amounts @ atom_volume[own])) ** (1 / 3)


def _crystal(
    template: Template,
    identifier: str,
    chosen: NDArray[np.int64],
    cell: NDArray[np.float64],
    positions: NDArray[np.float64],
    b_iso: NDArray[np.float64],
) -> Crystal:
    crystal = template.crystal
    names = [
        element_names()[element] if element >= 0 else own
        for element, own in zip(chosen.tolist(), template.kinds, strict=True)
    ]
    species = tuple([names[kind] for kind in template.kind_of_site.tolist()])
    return Crystal(
        identifier,
        cell,
        species,
        positions % 1.0,
        crystal.occupancy,
        b_iso,
        crystal.space_group,
        crystal.rotations,
        crystal.translations,
    )
