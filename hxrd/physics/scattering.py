"""How strongly an atom scatters: neutron scattering lengths and X-ray form factors."""

import re
import threading
from functools import cache
from types import ModuleType

import gemmi
import numpy as np
from numpy.typing import NDArray

from hxrd.errors import Rejected

_LOADING = threading.Lock()
_SPECIES = re.compile(r"(\d*)([A-Z][a-z]?)")


def scattering_lengths(species: tuple[str, ...], table: str) -> NDArray[np.complex128]:
    """Coherent neutron scattering lengths in fm, shape (n_sites,).

    Parameters
    ----------
    species : tuple of str
        Element symbols, ``D``, or isotopes such as ``11B``.
    table : {"sears1992", "periodictable"}
        Sears (1992), Neutron News 3(3), 26-37 (real; an isotope other than D comes from periodictable),
        or periodictable's compilation, complex (b' − ib'' with b'' from absorption at 1.798 Å).

    Raises
    ------
    Rejected
        A species that the table does not hold.
    """
    return np.array([_scattering_length(name, table) for name in species], dtype=np.complex128)


@cache
def _scattering_length(name: str, table: str) -> complex:
    match = _SPECIES.fullmatch(name)
    if match is None:
        raise Rejected(f"{name!r} is no element or isotope")
    mass, element = match.groups()
    length = _sears1992(element) if table == "sears1992" and not mass else _periodictable(mass, element)
    if not length:
        raise Rejected(f"no neutron scattering length is known for {name}")
    return length


def filled_periodictable() -> ModuleType:
    """Return the module periodictable, its tables of neutrons filled.

    It fills them when first asked for, which two threads must not do at once.
    """
    import periodictable

    with _LOADING:
        periodictable.H.neutron  # noqa: B018
    return periodictable


def _sears1992(element: str) -> complex | None:
    length = gemmi.Element(element).neutron92.get_coefs()[0]
    return complex(length) if length else None


def _periodictable(mass: str, element: str) -> complex | None:
    try:
        atom = filled_periodictable().elements.symbol(element)
        neutron = (atom[int(mass)] if mass else atom).neutron
    except (ValueError, KeyError, TypeError):  # no such element or isotope; an isotope of D
        return None
    if neutron is None or neutron.b_c is None:
        return None
    # The imaginary part belongs to 1.798 Å, where absorption is tabulated.
    length = getattr(neutron, "b_c_complex", None)
    return complex(neutron.b_c if length is None else length)


def form_factor_coefficients(species: tuple[str, ...]) -> NDArray[np.float64]:
    """Coefficients a1…a4, b1…b4, c of the X-ray form factor f(s) = Σ aᵢ exp(−bᵢ s²) + c.

    s = sinθ/λ in Å⁻¹; International Tables for Crystallography C (1992), Table 6.1.1.4, neutral atoms.

    Returns
    -------
    ndarray, shape (n_sites, 9)

    Raises
    ------
    Rejected
        A species without a form factor.
    """
    return np.array([_form_factor(name) for name in species], dtype=np.float64)


@cache
def _form_factor(name: str) -> tuple[float, ...]:
    match = _SPECIES.fullmatch(name)
    if match is None:
        raise Rejected(f"{name!r} is no element or isotope")
    element = gemmi.Element(match.group(2))
    coefficients = element.it92
    if element.atomic_number == 0 or coefficients is None:
        raise Rejected(f"no X-ray form factor is known for {name}")
    return (*coefficients.a, *coefficients.b, coefficients.c)
