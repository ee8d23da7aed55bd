"""Instruments: what a diffractometer does to the reflections of a crystal, as small TOML files."""

import math
import tomllib
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from hxrd.errors import InputError, UsageError

Probe = Literal["neutron", "xray"]
ScatteringTable = Literal["sears1992", "periodictable", "it92"]

# Kα lines in Å and the weight of each in the doublet: Hölzer et al. (1997), Phys. Rev. A 56, 4554.
_K_ALPHA = {
    "Cr": (2.2897260, 2.2936510),
    "Fe": (1.9360410, 1.9399730),
    "Co": (1.7889960, 1.7928350),
    "Cu": (1.5405929, 1.5444274),
    "Mo": (0.7093171, 0.7136070),
    "Ag": (0.5594218, 0.5638131),
}
_DOUBLET_WEIGHTS = (2 / 3, 1 / 3)
LARGEST_GRID = 200_000
LARGEST_HALF_HEIGHT = 0.5  # of the radius; real instruments stay below 0.1
LARGEST_ZERO_SHIFT = 5.0  # degrees
_WHOLE_STEPS = 1e-3  # how far from a whole number the steps of a range may be, as for a model's grid


class Instrument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A constant-wavelength powder diffractometer.

    Parameters
    ----------
    name, description, source : str
        What it is, and where its numbers come from.
    probe : {"neutron", "xray"}
        The radiation.
    wavelengths : tuple of (float, float)
        Wavelength in Å and weight of each line.
    scattering_table : {"sears1992", "periodictable", "it92"}
        Neutron scattering lengths of Sears (1992), Neutron News 3, 26 (real, elements and D), or those
        of periodictable (complex, with isotopes); X-ray form factors of International Tables C (1992).
    caglioti_u, caglioti_v, caglioti_w : float
        Gaussian FWHM² = U tan²θ + V tanθ + W, in deg² (Caglioti, Paoletti & Ricci 1958).
    lorentzian_x, lorentzian_y : float
        Lorentzian FWHM = X / cosθ + Y tanθ, in degrees.
    axial_divergence : float
        Size of the low-angle tail: the kernel reaches ½ (180/π) s² / tan 2θ degrees; 0 for none. The short
        form of what the next two say; an instrument has the one or the other.
    sample_half_height, detector_half_height : float
        S/L and H/L: half heights of the sample and of the detector over the radius of the diffractometer
        (Finger, Cox & Jephcoat 1994); both 0 for no asymmetry.
    zero_shift : float
        Degrees: a line at 2θ appears at 2θ + zero_shift.
    polarization : float
        Part of an X-ray beam's intensity, before any monochromator, polarised perpendicular to the plane of
        diffraction: 0.5 for a tube, nearly 1 for a synchrotron.
    monochromator_two_theta : float
        2θ of an X-ray monochromator in degrees, in the incident or the diffracted beam; 0 for none.
    two_theta : tuple of (start, stop, step)
        Grid in degrees, both ends included.
    """

    name: str
    description: str
    source: str
    probe: Probe
    wavelengths: tuple[tuple[float, float], ...]
    scattering_table: ScatteringTable
    caglioti_u: float
    caglioti_v: float
    caglioti_w: float
    lorentzian_x: float
    lorentzian_y: float
    axial_divergence: float = 0.0
    sample_half_height: float = 0.0
    detector_half_height: float = 0.0
    zero_shift: float = 0.0
    polarization: float = 0.5
    monochromator_two_theta: float = 0.0
    two_theta: tuple[float, float, float]

    @property
    def wavelength(self) -> float:
        """Weighted mean wavelength in Å."""
        lines = np.array(self.wavelengths)
        return float(np.average(lines[:, 0], weights=lines[:, 1]))

    @property
    def polarization_ratio(self) -> float:
        """A of the polarisation factor (1 + A cos² 2θ)/(1 + A); 0 for neutrons.

        A = (1 − p)/p · cos² 2θ_m: the intensity polarised in the plane of diffraction over that
        perpendicular to it, after a mosaic monochromator (Azaroff 1955, Acta Cryst. 8, 701).
        """
        if self.probe == "neutron":
            return 0.0
        weakened = math.cos(math.radians(self.monochromator_two_theta)) ** 2
        return (1 - self.polarization) / self.polarization * weakened

    def grid(self) -> NDArray[np.float64]:
        """Scattering angles 2θ in degrees, shape (n_points,)."""
        start, stop, step = self.two_theta
        n_points = round((stop - start) / step) + 1
        return np.round(start + step * np.arange(n_points), 10)


def preset_names() -> list[str]:
    """Names of the instruments that hxrd carries."""
    folder = resources.files("hxrd.physics") / "instruments"
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def load_instrument(name_or_path: str) -> Instrument:
    """Read a preset by name, or a user's TOML file.

    Raises
    ------
    UsageError
        No such preset or file.
    InputError
        A file that is not a valid instrument, or an impossible one; the offending field is named.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise UsageError(f"instrument file {path} does not exist")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"instrument file {path} cannot be read as text ({error})") from error
    elif name_or_path in preset_names():
        text = (resources.files("hxrd.physics") / "instruments" / f"{name_or_path}.toml").read_text("utf-8")
    else:
        raise UsageError(
            f"no instrument preset {name_or_path!r}: choose one of {', '.join(preset_names())}, "
            "or give a file that ends in .toml"
        )
    try:
        return _checked(msgspec.convert(tomllib.loads(text), Instrument))
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UsageError) as error:
        raise InputError(f"instrument {name_or_path}: {error}") from error


def parse_wavelength(text: str) -> tuple[tuple[float, float], ...]:
    """Turn ``1.5406``, ``CuKa``, ``CuKa1`` or ``MoKa2`` into lines of (wavelength in Å, weight).

    Raises
    ------
    UsageError
        Not a positive number and not a known line.
    """
    element, _, line = text.partition("K")
    if element in _K_ALPHA and line in ("a", "a1", "a2"):
        lines = _K_ALPHA[element]
        if line == "a":
            return tuple(zip(lines, _DOUBLET_WEIGHTS, strict=True))
        return ((lines[int(line[1]) - 1], 1.0),)
    try:
        wavelength = float(text)
    except ValueError:
        names = ", ".join(f"{element}Ka" for element in _K_ALPHA)
        raise UsageError(f"wavelength {text!r} is neither a number in Å nor one of {names}") from None
    if not 0.01 <= wavelength <= 100:
        raise UsageError(f"wavelength {text} Å is impossible: give 0.01 to 100 Å")
    return ((wavelength, 1.0),)


def with_overrides(
    instrument: Instrument,
    probe: Probe | None = None,
    wavelength: str | None = None,
    two_theta: tuple[float, float, float] | None = None,
) -> Instrument:
    """Return the instrument with the parts that a user named put in place of its own.

    Raises
    ------
    UsageError
        An impossible wavelength or grid.
    """
    changes: dict[str, object] = {}
    if probe is not None and probe != instrument.probe:
        changes["probe"] = probe
        changes["scattering_table"] = "it92" if probe == "xray" else "sears1992"
    if wavelength is not None:
        changes["wavelengths"] = parse_wavelength(wavelength)
    if two_theta is not None:
        changes["two_theta"] = two_theta
    return _checked(msgspec.structs.replace(instrument, **changes)) if changes else instrument


def _checked(instrument: Instrument) -> Instrument:
    _check_two_theta(*instrument.two_theta)
    if not instrument.wavelengths or not all(
        0.01 <= wavelength <= 100 and 0 < weight < math.inf for wavelength, weight in instrument.wavelengths
    ):
        raise UsageError("wavelengths must be 0.01 to 100 Å, and their weights positive")
    if (instrument.probe == "xray") != (instrument.scattering_table == "it92"):
        raise UsageError(
            f"scattering_table {instrument.scattering_table} is not one for probe {instrument.probe}"
        )
    for name in ("caglioti_u", "caglioti_v", "caglioti_w", "lorentzian_x", "lorentzian_y"):
        if not math.isfinite(getattr(instrument, name)):
            raise UsageError(f"{name} must be a finite number")
    _check_asymmetry(instrument)
    if not abs(instrument.zero_shift) <= LARGEST_ZERO_SHIFT:
        raise UsageError(f"zero_shift must lie within {LARGEST_ZERO_SHIFT:g} degrees of 0")
    if not 0 < instrument.polarization <= 1:
        raise UsageError("polarization must lie in (0, 1]")
    if not 0 <= instrument.monochromator_two_theta < 180:
        raise UsageError("monochromator_two_theta must lie in [0, 180) degrees")
    _check_widths(instrument)
    return instrument


def _check_asymmetry(instrument: Instrument) -> None:
    if not 0 <= instrument.axial_divergence < 1:
        raise UsageError("axial_divergence must lie in [0, 1)")
    for name in ("sample_half_height", "detector_half_height"):
        if not 0 <= getattr(instrument, name) <= LARGEST_HALF_HEIGHT:
            raise UsageError(f"{name} must lie in [0, {LARGEST_HALF_HEIGHT:g}] (of the radius)")
        if instrument.axial_divergence and getattr(instrument, name):
            raise UsageError(f"axial_divergence and {name} both smear a peak: leave one of them at 0")


def _check_widths(instrument: Instrument) -> None:
    two_theta = instrument.grid()
    tangent, cosine = np.tan(np.radians(two_theta / 2)), np.cos(np.radians(two_theta / 2))
    variance = instrument.caglioti_u * tangent**2 + instrument.caglioti_v * tangent + instrument.caglioti_w
    lorentz = instrument.lorentzian_x / cosine + instrument.lorentzian_y * tangent
    for name, width in (("caglioti_u, v, w", variance), ("lorentzian_x, y", lorentz)):
        if width.min() < 0:
            angle = two_theta[width.argmin()]
            raise UsageError(f"{name} give a negative width at 2θ = {angle:g} degrees")
    if variance.max() <= 0 and lorentz.max() <= 0:
        raise UsageError("caglioti_u, v, w and lorentzian_x, y give peaks without any width")


def _check_two_theta(start: float, stop: float, step: float) -> None:
    text = f"2θ range {start:g} {stop:g} {step:g}"
    if not (0 < start < stop < 180 and 0 < step <= stop - start):
        raise UsageError(f"{text} is impossible: degrees, 0 < START < STOP < 180, STEP > 0")
    steps = (stop - start) / step
    if steps > LARGEST_GRID:
        raise UsageError(f"{text} has over {LARGEST_GRID} points")
    if abs(steps - round(steps)) > _WHOLE_STEPS:
        last = start + math.floor(steps) * step
        raise UsageError(f"{text} does not reach its STOP by whole steps: give {last:.6g} as STOP")
