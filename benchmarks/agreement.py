"""What must hold before anything is timed: the same sticks, or the same pattern."""

import numpy as np
import peers

from hxrd.crystal.crystal import Crystal
from hxrd.physics.instrument import Instrument
from hxrd.simulate.simulate import simulate_patterns, sticks

_STEP = 0.02  # degrees: sticks are shared out on a grid of this step to be compared
_LEAST_CORRELATION = 0.999


class Disagreement(AssertionError):
    """Two results that ought to be equal are not, so there is nothing to time."""


def our_sticks(crystal: Crystal, instrument: Instrument) -> peers.Sticks:
    found = sticks([crystal], instrument)
    return np.asarray(found.two_theta), np.asarray(found.intensity)


def stick_difference(one: peers.Sticks, other: peers.Sticks, instrument: Instrument) -> float:
    """Largest difference, over the maximum, of two sets of sticks shared out linearly on a fine grid."""
    start, stop, _ = instrument.two_theta
    grid = []
    for two_theta, intensity in (one, other):
        place = (two_theta - start) / _STEP
        left = np.floor(place).astype(int)
        size = int((stop - start) / _STEP) + 2
        shared = np.bincount(left, intensity * (left + 1 - place), size)
        shared += np.bincount(left + 1, intensity * (place - left), size)
        grid.append(shared / shared.max())
    return float(np.abs(grid[0] - grid[1]).max())


def agreement_of_sticks(
    crystal: Crystal, peer: peers.PymatgenNeutrons | peers.RustXrays, instrument: Instrument, bound: float
) -> float:
    """Return how far our sticks are from the peer's, at most `bound`."""
    with peers.pymatgen_with_lengths_of(instrument.scattering_table):
        apart = stick_difference(our_sticks(crystal, instrument), peer.sticks(), instrument)
    if not apart <= bound:
        raise Disagreement(f"sticks of {crystal.identifier} differ by {apart:.2g} of the largest")
    return apart


def agreement_of_patterns(crystal: Crystal, peer: peers.Phasesmith, instrument: Instrument) -> float:
    """Return the correlation of our pattern with the peer's, at least `_LEAST_CORRELATION`."""
    ours, _ = simulate_patterns([crystal], instrument, threads=1)
    correlation = float(np.corrcoef(ours[0], peer.pattern())[0, 1])
    if not correlation >= _LEAST_CORRELATION:
        raise Disagreement(f"patterns of {crystal.identifier} correlate by {correlation:.4f} only")
    return correlation
