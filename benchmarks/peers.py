"""The other simulators, each made to compute what hxrd is asked for, on one thread.

What a peer must build once for a crystal is built in its constructor and not timed; a call to the object is
what the benchmark times. Each gives `sticks()` (two_theta, intensity over the largest) or `pattern()`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal
from hxrd.physics.instrument import Instrument
from hxrd.physics.scattering import scattering_lengths

Sticks = tuple[NDArray[np.float64], NDArray[np.float64]]

_SIGMA_SQUARED = 8 * np.log(2)  # FWHM² of a Gaussian over its variance
_SAME_POSITION = 1e-3  # fractional
# phasesmith's own control: area of a peak that its cut tails may hold. The support of `hxrd` leaves out
# 2 % of a Lorentzian.
TAIL_AREA = 0.02


def structure_of(crystal: Crystal) -> Any:
    """Return a pymatgen Structure; species that share a position become one site."""
    from pymatgen.core import Lattice, Structure

    places: dict[tuple[float, ...], dict[str, float]] = {}
    for name, position, occupancy in zip(crystal.species, crystal.positions, crystal.occupancy, strict=True):
        places.setdefault(tuple(position), {})[name] = float(occupancy)
    return Structure(Lattice.from_parameters(*crystal.cell), list(places.values()), list(places))


class PymatgenNeutrons:
    """`NDCalculator`: sticks of neutrons, with Miller indices and families."""

    def __init__(self, crystal: Crystal, instrument: Instrument) -> None:
        from pymatgen.analysis.diffraction.neutron import NDCalculator

        self.structure = structure_of(crystal)
        self.calculator = NDCalculator(wavelength=instrument.wavelength)
        self.range = instrument.two_theta[:2]

    def __call__(self) -> Any:
        return self.calculator.get_pattern(self.structure, two_theta_range=self.range)

    def sticks(self) -> Sticks:
        """Positions and relative intensities."""
        found = self()
        return np.asarray(found.x), np.asarray(found.y) / 100


@contextmanager
def pymatgen_with_lengths_of(table: str) -> Iterator[None]:
    """Give pymatgen the scattering lengths of one of our tables, so that intensities can be compared."""
    from pymatgen.analysis.diffraction import neutron

    from hxrd.errors import Rejected

    own = dict(neutron.ATOMIC_SCATTERING_LEN)
    for name in own:
        try:
            length = scattering_lengths((name,), table)[0]
        except Rejected:
            continue
        neutron.ATOMIC_SCATTERING_LEN[name] = float(length.real)
    try:
        yield
    finally:
        neutron.ATOMIC_SCATTERING_LEN.clear()
        neutron.ATOMIC_SCATTERING_LEN.update(own)


class RustXrays:
    """xrd-rust's `XRDCalculatorRust`: sticks of X-rays, on one thread with SIMD."""

    def __init__(self, crystal: Crystal, instrument: Instrument) -> None:
        from xrd_rust_calculator import XRDCalculatorRust

        self.structure = structure_of(crystal)
        self.calculator = XRDCalculatorRust(instrument.wavelength, parallel=False, num_threads=1)
        self.range = instrument.two_theta[:2]

    def __call__(self) -> Any:
        return self.calculator.get_pattern(self.structure, two_theta_range=self.range)

    def sticks(self) -> Sticks:
        """Positions and relative intensities."""
        found = self()
        return np.asarray(found.x), np.asarray(found.y) / 100


class Phasesmith(ABC):
    """phasesmith from a crystal's asymmetric unit and operations: reflections, intensities, profile.

    Parameters
    ----------
    crystal : Crystal
    instrument : Instrument
        Neutrons of one wavelength.
    """

    def __init__(self, crystal: Crystal, instrument: Instrument) -> None:
        import phasesmith as ps

        self.ps = ps
        self.instrument = instrument
        self.structure = self._structure(crystal)
        self.generator = ps.PreparedReflectionGenerator(self.structure.space_group)
        start, stop, _ = instrument.two_theta
        self.range = ps.CwTwoThetaRange(start, stop, instrument.wavelength)
        self.correction = ps.ConstantWavelengthNeutronLorentz(instrument.wavelength)
        self.shape = ps.ConstantWavelengthInstrument(
            instrument.wavelength,
            instrument.caglioti_u / _SIGMA_SQUARED,
            instrument.caglioti_v / _SIGMA_SQUARED,
            instrument.caglioti_w / _SIGMA_SQUARED,
            instrument.lorentzian_x,
            instrument.lorentzian_y,
        )
        half = instrument.axial_divergence / 2
        axial = ps.FcjGeometry(half, half) if half else None
        self.experiment = ps.ConstantWavelengthExperiment.neutron(self.shape, axial_geometry=axial)
        self.grid = ps.PowderPattern(instrument.grid())
        self.one_thread = ps.ExecutionPolicy(threads=1)

    def _structure(self, crystal: Crystal) -> Any:
        ps = self.ps
        sites = []
        for number, site in enumerate(asymmetric_unit(crystal)):
            name = crystal.species[site]
            x, y, z = (float(value) for value in crystal.positions[site])
            sites.append(
                ps.AtomSite(f"s{number}", name, name, name, (x, y, z), float(crystal.occupancy[site]))
            )
        operations = [
            ps.SymmetryOperation(
                rotation.astype(np.int64), [Fraction(round(24 * float(part)), 24) for part in translation]
            )
            for rotation, translation in zip(crystal.rotations, crystal.translations, strict=True)
        ]
        cell = ps.UnitCell(*(float(value) for value in crystal.cell))
        return ps.CrystalStructure("c", "c", cell, ps.SpaceGroup(operations), tuple(sites))

    @abstractmethod
    def __call__(self) -> Any:
        """Compute; what is timed."""

    def pattern(self) -> NDArray[np.float64]:
        """Pattern over its maximum."""
        y = np.asarray(self())
        return y / y.max()

    def _phase(self) -> Any:
        ps = self.ps
        reflections = self.generator.generate(self.structure.cell, self.range)
        return ps.RietveldPhase(
            "c",
            "c",
            self.structure,
            ps.StructuralReflectionBatch.from_generated(reflections),
            ps.NeutronNuclear(),
            self.correction,
            coordinate_tolerance=_SAME_POSITION,
        )


class PhasesmithWhole(Phasesmith):
    """Its high-level call, with axial asymmetry; it computes derivatives too and cannot be told not to."""

    def prepared(self) -> Any:
        """Return everything but the last call, as a refinement would keep it."""
        return self.ps.PreparedStructuralPattern(
            self.grid,
            self.experiment,
            self._phase(),
            profile_accuracy=self.ps.ProfileAccuracy(fast_fcj=True, tail_area_tolerance=TAIL_AREA),
            execution=self.one_thread,
        )

    def __call__(self) -> NDArray[np.float64]:
        return np.asarray(self.prepared().calculate().profile_y)


class PhasesmithValues(Phasesmith):
    """Its quickest path to a pattern: values without derivatives, symmetric peaks.

    `accumulate_values` is internal to phasesmith 0.7 and takes one support for all peaks, in FWHM.
    """

    SUPPORT = 16.0  # FWHM: where a Lorentzian has fallen to 0.001 of its top

    def reflections(self) -> Any:
        """Return the sets of equivalent reflections."""
        return self.generator.generate(self.structure.cell, self.range)

    def __call__(self) -> NDArray[np.float64]:
        from phasesmith import _core

        ps = self.ps
        reflections = self.reflections()
        found = ps.calculate_structure_factor_values(
            self.structure,
            reflections.hkl,
            reflections.multiplicity,
            ps.NeutronNuclear(),
            powder_average=True,
            correction=self.correction,
            coordinate_tolerance=_SAME_POSITION,
            execution=self.one_thread,
        )
        theta = np.arcsin(self.instrument.wavelength / (2 * reflections.d_spacing_angstrom))
        fwhm, eta = peak_widths(theta, self.instrument)
        y = _core.accumulate_values(  # type: ignore[attr-defined]
            self.grid.x, np.degrees(2 * theta), found.integrated_intensity, fwhm, eta, self.SUPPORT
        )
        return np.asarray(y)


class PhasesmithKept(PhasesmithValues):
    """As `PhasesmithValues`, the list of reflections made beforehand, as a refinement keeps it."""

    def __init__(self, crystal: Crystal, instrument: Instrument) -> None:
        super().__init__(crystal, instrument)
        self._kept = super().reflections()

    def reflections(self) -> Any:
        """Return what was made in the constructor."""
        return self._kept


def peak_widths(theta: NDArray[np.float64], instrument: Instrument) -> Sticks:
    """FWHM (deg) and mixing of Thompson, Cox & Hastings (1987), Eqs 3 and 5, at theta (rad)."""
    tangent = np.tan(theta)
    gauss = np.sqrt(
        instrument.caglioti_u * tangent**2 + instrument.caglioti_v * tangent + instrument.caglioti_w
    )
    lorentz = instrument.lorentzian_x / np.cos(theta) + instrument.lorentzian_y * tangent
    fwhm = np.zeros_like(theta)
    for power, factor in enumerate((1.0, 2.69269, 2.42843, 4.47163, 0.07842, 1.0)):
        fwhm += factor * gauss ** (5 - power) * lorentz**power
    fwhm **= 0.2
    ratio = lorentz / fwhm
    return fwhm, ratio * (1.36603 + ratio * (-0.47719 + ratio * 0.11116))


def orbit_of(crystal: Crystal, site: int) -> list[int]:
    """Return the sites that the crystal's operations make of one, itself among them."""
    images = crystal.rotations @ crystal.positions[site] + crystal.translations
    gaps = images[:, None] - crystal.positions[None]
    near = np.abs(gaps - np.round(gaps)).max(axis=2).min(axis=0) < _SAME_POSITION
    alike = np.array([name == crystal.species[site] for name in crystal.species])
    return [int(other) for other in np.flatnonzero(near & alike)]


def asymmetric_unit(crystal: Crystal) -> list[int]:
    """Return one site of each orbit."""
    left = set(range(len(crystal.species)))
    chosen = []
    for site in range(len(crystal.species)):
        if site in left:
            chosen.append(site)
            left -= {site, *orbit_of(crystal, site)}
    return chosen
