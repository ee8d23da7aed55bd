"""Small endless streams, and supplies that go wrong; spawned workers import this file."""

import os
import signal
from dataclasses import replace

import msgspec
import numpy as np
from built_crystals import CARE_CASES, HALITE, built

from hxrd.crystal.crystal import Crystal
from hxrd.crystal.synthetic import SyntheticSettings
from hxrd.errors import InputError
from hxrd.physics.instrument import load_instrument
from hxrd.simulate.augmentation import Augmentation, load_augmentation
from hxrd.simulate.effects import Impurity
from hxrd.simulate.stream import PatternStream
from hxrd.simulate.supply import CrystalSupply, SyntheticCrystals

COARSE = msgspec.structs.replace(load_instrument("paper"), two_theta=(10.0, 130.0, 0.2))
REALISTIC = load_augmentation("realistic-neutron")
MIXED = Augmentation(impurity=Impurity(weight_fraction=(0.05, 0.2), phases=2, probability=0.9))
GROUPS = (14, 62, 166, 194, 221, 225)
GIVEN = [replace(crystal, identifier=name) for name, crystal in CARE_CASES.items()]
UNKNOWN_TO_NEUTRONS = built("F m -3 m", HALITE, [("At", (0, 0, 0))], identifier="astatine")


def small_stream(
    augmentation: Augmentation | None = None, supply: CrystalSupply | None = None, **options
) -> PatternStream:
    """Patterns of a few easy space groups, eight a block, 601 points each."""
    supply = supply or SyntheticCrystals(SyntheticSettings(groups=GROUPS))
    return PatternStream(supply, COARSE, augmentation, **{"block_size": 8, **options})


class Failing(SyntheticCrystals):
    """Gives no crystals from a number on."""

    def __init__(self, last: int) -> None:
        super().__init__(SyntheticSettings(groups=GROUPS))
        self.last = last

    def crystals(self, numbers: np.ndarray, seed: int) -> list[Crystal]:
        if numbers[-1] >= self.last:
            raise InputError(f"there is no crystal {numbers[-1]}")
        return super().crystals(numbers, seed)


class Killed(SyntheticCrystals):
    """Ends the process that asks for a number, as the system does where memory runs out."""

    def __init__(self, last: int) -> None:
        super().__init__(SyntheticSettings(groups=GROUPS))
        self.last = last

    def crystals(self, numbers: np.ndarray, seed: int) -> list[Crystal]:
        if numbers[-1] >= self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().crystals(numbers, seed)
