"""Augmentations: which effects of a measurement a clean pattern gets, as small TOML files.

Every effect is a table of the file, named as the field of `Augmentation`; one whose table is absent is off.
"""

import tomllib
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import msgspec

from hxrd.errors import InputError, UsageError
from hxrd.simulate.effects import (
    Absorption,
    Background,
    Counting,
    CrystalliteSize,
    DisplacementJitter,
    Impurity,
    Incoherent,
    LatticeStrain,
    MaskedRegions,
    Microstrain,
    SampleDisplacement,
    Texture,
    ThermalExpansion,
    Truncation,
    ZeroShift,
    check,
)


class Augmentation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A choice of effects, each with its distribution; None is off.

    Parameters
    ----------
    name, description, source : str
        What it is meant for, and where its numbers come from.
    least_left : float
        Share of the labelled phase's diffracted intensity that truncation and masked regions must leave;
        a pattern that would keep less is left whole.
    size, microstrain, texture, lattice_strain, thermal_expansion, displacement_parameters, absorption
        The sample.
    zero_shift, sample_displacement
        Its alignment.
    impurity, background, incoherent, counting, truncation, masked_regions
        The measurement.
    """

    name: str = ""
    description: str = ""
    source: str = ""
    least_left: float = 0.5
    size: CrystalliteSize | None = None
    microstrain: Microstrain | None = None
    texture: Texture | None = None
    lattice_strain: LatticeStrain | None = None
    thermal_expansion: ThermalExpansion | None = None
    displacement_parameters: DisplacementJitter | None = None
    absorption: Absorption | None = None
    zero_shift: ZeroShift | None = None
    sample_displacement: SampleDisplacement | None = None
    impurity: Impurity | None = None
    background: Background | None = None
    incoherent: Incoherent | None = None
    counting: Counting | None = None
    truncation: Truncation | None = None
    masked_regions: MaskedRegions | None = None

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check("least_left", self.least_left, 0, 1)


def augmentation_names() -> list[str]:
    """Names of the augmentations that hxrd carries."""
    names = (entry.name for entry in _folder().iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def _folder() -> Traversable:
    return resources.files("hxrd.simulate") / "augmentations"


def load_augmentation(name_or_path: str) -> Augmentation:
    """Read a preset by name, or a user's TOML file.

    Raises
    ------
    UsageError
        No such preset or file.
    InputError
        A file that is not a valid augmentation; the offending field is named.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise UsageError(f"augmentation file {path} does not exist")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"augmentation file {path} cannot be read as text ({error})") from error
    elif name_or_path in augmentation_names():
        text = (_folder() / f"{name_or_path}.toml").read_text("utf-8")
    else:
        raise UsageError(
            f"no augmentation preset {name_or_path!r}: choose one of {', '.join(augmentation_names())}, "
            "or give a file that ends in .toml"
        )
    try:
        return msgspec.convert({"name": path.stem, **tomllib.loads(text)}, Augmentation)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InputError(f"augmentation {name_or_path}: {error}") from error
