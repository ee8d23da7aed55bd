"""Known crystals varied at random, by name: ``NAME~17`` is the 17th variation of all, and one of NAME."""

import logging
from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal
from hxrd.crystal.synthetic import NumberedNames
from hxrd.crystal.synthetic_table import element_names, tables
from hxrd.errors import InputError, Rejected
from hxrd.kernels.template import Surroundings, roominess, vary_sanely
from hxrd.simulate.templates import Template, TemplateSettings, make_template
from hxrd.sources import SourceChain, UnknownIdentifier, icsd_hint

USUAL = TemplateSettings(scale_sigma=0.03)
"""As in training, but for the scale: the volume follows the elements by itself."""

_CLOSER = 0.95  # of their own smallest distance, where that is below the limit
_POOL_SIZE = 256  # elements that may stand for one, as often as they are to be drawn
_REASONS_TOLD = 10  # templates left out that are named
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
        None can be varied. One that is not in the sources, that is no usable crystal, or whose atoms do
        not have the declared group, is left out, and the first of these are named.
    """

    def __init__(
        self,
        identifiers: Sequence[str],
        chain: SourceChain,
        seed: int,
        settings: TemplateSettings = USUAL,
    ) -> None:
        self._specification = f"templates of {', '.join(chain.describe())}"
        self._seed = np.uint64(seed)
        self._numbers = np.array([getattr(settings, name) for name in settings.__struct_fields__])
        self._templates, self.n_left_out = _usable_templates(identifiers, chain)
        self._names = [template.crystal.identifier for template in self._templates]
        self._surroundings = [_surroundings(template) for template in self._templates]
        self._pools = _pools()

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
        template = self._templates[index]
        n_sites = len(template.kind_of_site)
        chosen = np.empty(len(template.kinds), dtype=np.int64)
        cell, positions, b_iso = np.empty(6), np.empty((n_sites, 3)), np.empty(n_sites)
        attempts = vary_sanely(
            template.arrays,
            self._surroundings[index],
            self._numbers,
            self._pools,
            self._seed,
            np.uint64(number),
            chosen,
            cell,
            positions,
            b_iso,
        )
        if not attempts:
            raise Rejected("no variation keeps its atoms apart")
        return _crystal(template, identifier, chosen, cell, positions, b_iso)


def _usable_templates(identifiers: Sequence[str], chain: SourceChain) -> tuple[list[Template], int]:
    """Return the templates whose symmetry is sure, and how many cannot be used; say why."""
    usable: list[Template] = []
    reasons: dict[str, str] = {}
    unknown: list[str] = []
    for identifier in identifiers:
        try:
            template = make_template(chain.get(identifier))
            if template.image is None:
                raise Rejected("its atoms do not have the declared group")
            usable.append(template)
        except Rejected as rejection:
            reasons[identifier] = str(rejection)
            if isinstance(rejection, UnknownIdentifier):
                unknown.append(identifier)
    for identifier, reason in islice(reasons.items(), _REASONS_TOLD):
        logger.warning("left out template %s: %s", identifier, reason)
    if len(reasons) > _REASONS_TOLD:
        logger.warning("… and %d more templates", len(reasons) - _REASONS_TOLD)
    if not usable:
        hint = icsd_hint(unknown, len(identifiers))
        raise InputError(hint or "no template can be varied: each was left out for the reason told above")
    return usable, len(identifiers) - len(usable)


def _element_numbers(template: Template) -> NDArray[np.int64]:
    """Return the table's number of each species' element; of one that it lacks, that of a similar size."""
    names = element_names()
    numbers = []
    for kind in template.kinds:
        element = kind.lstrip("0123456789")
        element = _STAND_INS.get(element, element)
        numbers.append(names.index(element) if element in names else names.index("Ca"))
    return np.array(numbers, dtype=np.int64)


def _surroundings(template: Template) -> Surroundings:
    own, crystal, table = _element_numbers(template), template.crystal, tables()
    context = Surroundings(
        own=own,
        kind_of_site=template.kind_of_site,
        occupancy=np.ascontiguousarray(crystal.occupancy, dtype=np.float64),
        amounts=np.bincount(template.kind_of_site, weights=crystal.occupancy),
        pool_range=np.stack([own * _POOL_SIZE, (own + 1) * _POOL_SIZE], axis=1),
        own_room=1.0,
        nearest=table.nearest,
        atom_volume=table.atom_volume,
    )
    room = float(roominess(template.arrays, context, own, crystal.cell, crystal.positions, 1.0))
    return context if room >= 1.0 else context._replace(own_room=room * _CLOSER**2)


def _pools() -> NDArray[np.int64]:
    """Return, for each element in turn, what may stand for it, as often as it is to be drawn."""
    shares = (np.arange(_POOL_SIZE) + 0.5) / _POOL_SIZE
    return np.concatenate([np.searchsorted(row, shares) for row in tables().substitute]).astype(np.int64)


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
