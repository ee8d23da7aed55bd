"""Crystals to patterns as a diffractometer might have measured them: the effects of an `Augmentation` drawn.

Everything that a row draws comes from its own seed, so a row depends on its seed, its crystal and, where it
has impurities, on the other crystals of the batch: never on threads, processes or what was done before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal
from hxrd.kernels import counting, powder
from hxrd.physics.instrument import Instrument
from hxrd.simulate.augmentation import Augmentation
from hxrd.simulate.composition import Composition, composition_of
from hxrd.simulate.draws import Stream, between, log_between, normals, uniforms
from hxrd.simulate.effects import Background
from hxrd.simulate.simulate import Simulated, conditions_of, in_parts, simulated
from hxrd.simulate.variation import varied

SCHERRER = 0.9  # K of the FWHM; Patterson (1939), Phys. Rev. 56, 978: 0.89 for spheres, 0.94 for cubes
_PARTNER_TRIES = 8  # draws of an impurity until one is another crystal that can be simulated
_LORENTZIAN_X, _LORENTZIAN_Y = 3, 4  # columns of `powder.Conditions.resolution`


@dataclass(frozen=True, slots=True, eq=False)
class Augmented:
    """Patterns as measured.

    Parameters
    ----------
    intensity : ndarray of float32, shape (n_crystals, n_points)
        Each row divided by its maximum; zeros where not measured, and in the row of a rejected crystal.
    reasons : list of str or None
        Why a crystal was rejected, None where it was not.
    impurity_index : ndarray of int32, shape (n_crystals, k)
        Which crystals of the batch are mixed in, -1 for none; k is `impurity.phases`, or 0.
    impurity_fraction : ndarray of float32, shape (n_crystals, k)
        Their weight fractions, 0 for none; the row's own crystal has the rest.
    mask : ndarray of bool, shape (n_crystals, n_points), or None
        True where a point is measured; None where the augmentation hides nothing.
    """

    intensity: NDArray[np.float32]
    reasons: list[str | None]
    impurity_index: NDArray[np.int32]
    impurity_fraction: NDArray[np.float32]
    mask: NDArray[np.bool_] | None


def augmented(
    crystals: Sequence[Crystal],
    instrument: Instrument,
    augmentation: Augmentation,
    seeds: NDArray[np.uint64],
    threads: int | None = None,
) -> Augmented:
    """Simulate each crystal with every effect of an augmentation drawn for it.

    Parameters
    ----------
    crystals : sequence of Crystal
        One batch: impurities are drawn from it.
    instrument : Instrument
    augmentation : Augmentation
    seeds : ndarray of uint64, shape (n_crystals,)
        One for each row.
    threads : int, optional
        All cores by default; 1 stays on the calling thread.
    """
    seeds = np.ascontiguousarray(seeds, dtype=np.uint64)
    samples = varied(crystals, augmentation, seeds)
    conditions = drawn_conditions(instrument, augmentation, seeds)
    own = simulated(samples, instrument, conditions, threads)
    composition = composition_of(samples)
    index, fraction = _drawn_impurities(samples, own, augmentation, seeds)
    others = _other_phases(own, instrument, conditions, index, threads)
    _leave_out_the_strongest(own, others, index, fraction, composition)
    mixture = _mixture(own, others, index, fraction, composition, instrument)
    measurement = _measurement(instrument, augmentation, conditions, seeds, mixture)
    hides = augmentation.truncation is not None or augmentation.masked_regions is not None
    mask = np.zeros((len(samples) if hides else 0, own.intensity.shape[1]), np.bool_)
    start, _, step = instrument.two_theta

    def measure(rows: NDArray[np.int64]) -> None:
        counting.measure(
            own.intensity, others.intensity, measurement, start, step, seeds, int(Stream.COUNTS), rows, mask
        )

    in_parts(measure, [1.0] * len(samples), threads)
    return Augmented(own.intensity, own.reasons, index, fraction, mask if hides else None)


def drawn_conditions(
    instrument: Instrument, augmentation: Augmentation, seeds: NDArray[np.uint64]
) -> powder.Conditions:
    """Return the conditions of an instrument, each row with its own size, strain, texture and alignment."""
    conditions = conditions_of(instrument, len(seeds))
    if (size := augmentation.size) is not None:
        u = uniforms(seeds, Stream.SIZE, 2)
        width = np.degrees(SCHERRER * instrument.wavelength / log_between(size.size, u[:, 0]))
        conditions.resolution[:, _LORENTZIAN_X] += np.where(u[:, 1] < size.probability, width, 0.0)
    if (microstrain := augmentation.microstrain) is not None:
        u = uniforms(seeds, Stream.MICROSTRAIN, 2)
        width = np.degrees(4 * log_between(microstrain.strain, u[:, 0]))
        conditions.resolution[:, _LORENTZIAN_Y] += np.where(u[:, 1] < microstrain.probability, width, 0.0)
    if (texture := augmentation.texture) is not None:
        u = uniforms(seeds, Stream.TEXTURE, 3)
        march = np.where(u[:, 2] < texture.probability, log_between(texture.march, u[:, 0]), 1.0)
        planes = np.array(texture.planes, dtype=float)
        conditions.texture[:, 0] = march
        conditions.texture[:, 1:] = planes[(u[:, 1] * len(planes)).astype(int)]
    if (absorption := augmentation.absorption) is not None:
        u = uniforms(seeds, Stream.ABSORPTION, 2)
        mu_r = np.where(u[:, 1] < absorption.probability, between(absorption.mu_r, u[:, 0]), 0.0)
        conditions.absorption[:] = mu_r
    if (zero := augmentation.zero_shift) is not None:
        conditions.zero_shift[:] += _shifts(zero.sigma, zero.probability, seeds, Stream.ZERO_SHIFT)
    if (moved := augmentation.sample_displacement) is not None:
        conditions.displacement[:] += _shifts(
            moved.sigma, moved.probability, seeds, Stream.SAMPLE_DISPLACEMENT
        )
    return conditions


def _shifts(
    sigma: float, probability: float, seeds: NDArray[np.uint64], stream: Stream
) -> NDArray[np.float64]:
    applied = uniforms(seeds, stream, 2)[:, 1] < probability
    return np.where(applied, sigma * normals(seeds, stream, 1)[:, 0], 0.0)


def _drawn_impurities(
    samples: Sequence[Crystal], own: Simulated, augmentation: Augmentation, seeds: NDArray[np.uint64]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Index (-1 for none) and weight fraction of each row's impurities, both of shape (n, phases)."""
    settings, n = augmentation.impurity, len(samples)
    phases = settings.phases if settings is not None else 0
    index, fraction = np.full((n, phases), -1, np.int32), np.zeros((n, phases), np.float32)
    if settings is None:
        return index, fraction
    numbers = {name: number for number, name in enumerate({sample.identifier: None for sample in samples})}
    identity = np.array([numbers[sample.identifier] for sample in samples])
    usable = np.array([reason is None for reason in own.reasons])
    u = uniforms(seeds, Stream.IMPURITY, phases * (2 + _PARTNER_TRIES)).reshape(n, phases, -1)
    for slot in range(phases):
        candidates = (u[:, slot, 2:] * n).astype(np.int64)
        fits = usable[candidates] & (identity[candidates] != identity[:, None])
        for earlier in range(slot):
            fits &= candidates != index[:, earlier, None]
        chosen = candidates[np.arange(n), fits.argmax(axis=1)]
        there = (u[:, slot, 0] < settings.probability) & fits.any(axis=1) & usable
        index[there, slot] = chosen[there]
        fraction[there, slot] = log_between(settings.weight_fraction, u[there, slot, 1])
    return index, fraction


class _OtherPhases(NamedTuple):
    """Patterns of impurities: `row` (n, phases) tells which is whose, -1 for none."""

    intensity: NDArray[np.float32]
    maximum: NDArray[np.float64]
    row: NDArray[np.int64]


def _other_phases(
    own: Simulated,
    instrument: Instrument,
    conditions: powder.Conditions,
    index: NDArray[np.int32],
    threads: int | None,
) -> _OtherPhases:
    """Take each impurity's own pattern, with its size, strain and texture, aligned and absorbed as its host.

    Moved and weighted rather than simulated again, which would cost as much as the rest of the augmentation.
    """
    row = np.full(index.shape, -1, np.int64)
    hosts, slots = np.nonzero(index >= 0)
    partners = index[hosts, slots].astype(np.int64)
    row[hosts, slots] = np.arange(len(hosts))
    moved = np.zeros((len(hosts), own.intensity.shape[1]), np.float32)
    shift = conditions.zero_shift[hosts] - conditions.zero_shift[partners]
    displacement = conditions.displacement[hosts] - conditions.displacement[partners]
    mu_r = np.stack([conditions.absorption[partners], conditions.absorption[hosts]], axis=1)
    start, _, step = instrument.two_theta

    def realign(rows: NDArray[np.int64]) -> None:
        counting.realigned(own.intensity, partners, shift, displacement, mu_r, start, step, rows, moved)

    in_parts(realign, [1.0] * len(hosts), threads)
    return _OtherPhases(moved, own.maximum[partners], row)


def _leave_out_the_strongest(
    own: Simulated,
    others: _OtherPhases,
    index: NDArray[np.int32],
    fraction: NDArray[np.float32],
    composition: Composition,
) -> None:
    """Take out, in place, impurities without a line in range, or that scatter more than their host does.

    A trace of a strong scatterer can outshine a weak one: such a pattern would not show what its label says.
    """
    hosts, slots = np.nonzero(index >= 0)
    partners, weight, place = index[hosts, slots], fraction[hosts, slots], others.row[hosts, slots]
    cell_weight = composition.mass * composition.volume
    foreign = weight * own.maximum[partners] / cell_weight[partners] * others.intensity[place].sum(axis=1)
    host_part = (1 - weight) * own.maximum[hosts] / cell_weight[hosts] * own.intensity[hosts].sum(axis=1)
    out = ~((foreign > 0) & (foreign < host_part))
    index[hosts[out], slots[out]] = -1
    fraction[hosts[out], slots[out]] = 0
    others.row[hosts[out], slots[out]] = -1


class _Mixture(NamedTuple):
    """What is added to a row's own pattern (of maximum 1): see `counting.Measurement`."""

    impurity_row: NDArray[np.int64]
    impurity_scale: NDArray[np.float64]
    incoherent: NDArray[np.float64]


def _mixture(
    own: Simulated,
    others: _OtherPhases,
    index: NDArray[np.int32],
    fraction: NDArray[np.float32],
    composition: Composition,
    instrument: Instrument,
) -> _Mixture:
    """Bring all phases to one scale by their weights.

    A cell of volume V (Å³) scatters dσ/dΩ = (180/π) λ³/(8πV) · Σ m|F|² L P fm² per steradian, P in 1/degree
    (Squires 1978, *Introduction to the Theory of Thermal Neutron Scattering*, Eq. 3.103, spread over 2θ),
    and Σ σ_inc/4π without structure; a phase of weight w has w/M cells of mass M (Hill & Howard 1987,
    *J. Appl. Cryst.* **20**, 467).
    """
    coherent = np.degrees(1.0) * instrument.wavelength**3 / (8 * np.pi)
    weights = sum(weight for _, weight in instrument.wavelengths)
    mass, volume = (np.where(column > 0, column, np.inf) for column in (composition.mass, composition.volume))
    partner = np.maximum(index, 0)
    cells = np.where(index >= 0, fraction / mass[partner], 0.0)
    own_cells = (1 - fraction.sum(axis=1, dtype=float)) / mass
    own_scale = own_cells * own.maximum * coherent / volume
    own_scale = np.where(own_scale > 0, own_scale, np.inf)
    maximum = others.maximum[others.row] if len(others.maximum) else np.zeros(index.shape)
    flat = own_cells * composition.incoherent + (cells * composition.incoherent[partner]).sum(axis=1)
    return _Mixture(
        others.row,
        cells * maximum * coherent / volume[partner] / own_scale[:, None],
        weights * flat / own_scale if instrument.probe == "neutron" else np.zeros(len(flat)),
    )


def _measurement(
    instrument: Instrument,
    augmentation: Augmentation,
    conditions: powder.Conditions,
    seeds: NDArray[np.uint64],
    mixture: _Mixture,
) -> counting.Measurement:
    total, incoherent = np.zeros(len(seeds)), np.zeros(len(seeds))
    if (counts := augmentation.counting) is not None:
        u = uniforms(seeds, Stream.TOTAL, 2)
        total = np.where(u[:, 1] < counts.probability, log_between(counts.total, u[:, 0]), 0.0)
    if (flat := augmentation.incoherent) is not None:
        u = uniforms(seeds, Stream.INCOHERENT, 2)
        factor = np.where(u[:, 1] < flat.probability, between(flat.factor, u[:, 0]), 0.0)
        incoherent = factor * mixture.incoherent
    return counting.Measurement(
        impurity_row=mixture.impurity_row,
        impurity_scale=mixture.impurity_scale,
        incoherent=incoherent,
        absorption=conditions.absorption,
        background=drawn_background(augmentation.background, instrument.wavelength, seeds),
        hidden=drawn_gaps(augmentation, instrument, seeds),
        least_left=augmentation.least_left,
        total=total,
    )


def drawn_background(
    settings: Background | None, wavelength: float, seeds: NDArray[np.uint64]
) -> NDArray[np.float64]:
    """Terms of `counting.add_background` for each row, shape (n, BACKGROUND_TERMS)."""
    terms = np.zeros((len(seeds), counting.BACKGROUND_TERMS))
    if settings is None:
        return terms
    u = uniforms(seeds, Stream.BACKGROUND, 11)
    terms[:, 0] = np.where(u[:, 0] < settings.probability, log_between(settings.level, u[:, 1]), 0.0)
    terms[:, 1:5] = settings.curve * (2 * u[:, 2:6] - 1) / np.arange(1, 5) ** 2
    terms[:, 5] = between(settings.hump, u[:, 6])
    sine = np.minimum(wavelength / (2 * between(settings.hump_d_spacing, u[:, 7])), 1.0)
    terms[:, 6] = np.degrees(2 * np.arcsin(sine))
    terms[:, 7] = between(settings.hump_fwhm, u[:, 8])
    terms[:, 8] = between(settings.rise, u[:, 9])
    terms[:, 9] = between(settings.rise_decay, u[:, 10])
    return terms


def drawn_gaps(
    augmentation: Augmentation, instrument: Instrument, seeds: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Intervals [first, stop) of points that are not measured, shape (n, r, 2); empty ones among them."""
    start, stop, step = instrument.two_theta
    n_points = round((stop - start) / step) + 1
    intervals: list[NDArray[np.float64]] = []
    if (cut := augmentation.truncation) is not None:
        u = uniforms(seeds, Stream.TRUNCATION, 3)
        applied = u[:, 2] < cut.probability
        low = np.where(applied, between(cut.low, u[:, 0]), 0.0)
        high = np.where(applied, between(cut.high, u[:, 1]), 0.0)
        intervals += [np.stack([np.full_like(low, -1.0), low / step], axis=1)]
        intervals += [np.stack([n_points - high / step, np.full_like(high, n_points + 1.0)], axis=1)]
    if (regions := augmentation.masked_regions) is not None:
        u = uniforms(seeds, Stream.MASKED_REGIONS, 2 + 2 * regions.most)
        number = np.where(u[:, 0] < regions.probability, 1 + np.floor(u[:, 1] * regions.most), 0)
        for gap in range(regions.most):
            centre = u[:, 2 + 2 * gap] * n_points
            half = np.where(gap < number, log_between(regions.width, u[:, 3 + 2 * gap]) / step / 2, -1.0)
            intervals += [np.stack([centre - half, centre + half], axis=1)]
    if not intervals:
        return np.zeros((len(seeds), 0, 2), np.int64)
    return np.clip(np.ceil(np.stack(intervals, axis=1)), 0, n_points).astype(np.int64)
