"""Names of species: an element symbol, ``D``, or an isotope such as ``11B``."""

import re
from functools import lru_cache

import gemmi

from hxrd.errors import Rejected

_CHARGE = r"(?:\d*\.?\d*[+-]\d*\.?\d*)?"
_MASS_FIRST = re.compile(rf"(\d{{1,3}})([A-Za-z]{{1,2}}){_CHARGE}")
_MASS_LAST = re.compile(r"([A-Za-z]{1,2})_?(\d{1,3})")
_PLAIN = re.compile(rf"([A-Za-z]{{1,2}}){_CHARGE}")
_FORM_FACTOR_SUFFIX = re.compile(r"(?:val|va|iso)$")  # Cval and Siva are valence form factors of it92


@lru_cache(maxsize=4096)
def normalized_species(text: str) -> str:
    """Return the species that a type symbol names, without its charge.

    ``Fe3+``, ``FE`` and ``Fe+3`` are ``Fe``; ``2H`` is ``D``; ``11B`` stays; ``B11`` and ``B_11`` are
    ``11B``, because 11 is the mass of a natural isotope of B, whereas ``Fe3`` is Fe (a charge whose
    sign was forgotten).

    Raises
    ------
    Rejected
        It names no element.
    """
    name = text.strip()
    if match := _MASS_FIRST.fullmatch(name):
        return _isotope(match[2], int(match[1]), name)
    if match := _PLAIN.fullmatch(name):
        return _element(match[1], name)
    if match := _MASS_LAST.fullmatch(name):
        element = _element(match[1], name)
        if element != "D" and _is_natural(element, int(match[2])):
            return _isotope(element, int(match[2]), name)
        return element
    return _element(_FORM_FACTOR_SUFFIX.sub("", name), name)


def species_from_label(label: str, formula: frozenset[str] = frozenset()) -> str:
    """Return the species of a site that has only a label, such as ``Na1``, ``OW2`` or ``CA``.

    Parameters
    ----------
    label : str
        Site label; by the CIF rule it begins with the element symbol.
    formula : frozenset of str
        Elements of the compound; they decide whether ``CA1`` is calcium or carbon A1.

    Raises
    ------
    Rejected
        It begins with no element symbol.
    """
    match = re.match(r"[A-Za-z]+", label.strip())
    letters = match[0] if match else ""
    two, one = letters[:2].capitalize(), letters[:1].upper()
    written_as_symbol = len(letters) > 1 and letters[1].islower()
    if len(letters) > 1 and _is_element(two) and (written_as_symbol or two in formula or one not in formula):
        return _element(two, label)
    if written_as_symbol:  # `Wat` is water, not tungsten
        raise Rejected(f"unknown element in site label {label!r}")
    return _element(one, label)


def _is_element(symbol: str) -> bool:
    # gemmi reads only the first two letters and knows X, an unknown element, as number 0
    return symbol.isalpha() and len(symbol) <= 2 and gemmi.Element(symbol).atomic_number > 0


def _element(symbol: str, written: str) -> str:
    name = symbol.capitalize()
    if not _is_element(name):
        raise Rejected(f"unknown element {written!r}")
    return name


def _isotope(symbol: str, mass: int, written: str) -> str:
    import periodictable

    element = _element(symbol, written)
    if element == "D" or (element == "H" and mass == 2):
        return "D"
    if mass not in getattr(periodictable, element).isotopes:
        raise Rejected(f"unknown isotope {written!r}")
    return f"{mass}{element}"


def _is_natural(element: str, mass: int) -> bool:
    import periodictable

    entry = getattr(periodictable, element)
    return mass in entry.isotopes and entry[mass].abundance > 0
