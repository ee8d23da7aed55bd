"""Training recipes: TOML files whose every field is checked."""

import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from hxrd.errors import InputError, UsageError
from hxrd.simulate.realism import RealismSettings
from hxrd.simulate.templates import TemplateSettings


class SyntheticShare(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Synthetic crystals among those of the archive.

    Parameters
    ----------
    share : float
        Of the patterns, those that show a synthetic crystal in place of the archive's: one of the same space
        group, another in each epoch.
    """

    share: float = 0.3

    def __post_init__(self) -> None:
        """Refuse an impossible share; msgspec reports a ValueError as a validation error."""
        if not 0 < self.share <= 1:
            raise ValueError("share must lie in (0, 1]")


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model is trained.

    Parameters
    ----------
    variant : {"paper", "released"}
        Of the ResNet-18-1D.
    dropout : float
    groups : {144, 230}
        Space groups told apart: the paper's 144 or all.
    epochs, batch_size : int
    learning_rate : float
        Greatest rate of the one-cycle schedule (Smith & Topin 2019, arXiv 1708.07120).
    warm_up : float
        Share of the steps in which the rate rises; then it falls along a cosine.
    weight_decay, clip_norm : float
        Of AdamW, and of the gradient.
    label_smoothing : float
    average_decay : float
        Of the exponential moving average of the weights, which is what is kept.
    input_transform : {"none", "sqrt"}
        Applied to a pattern after division by its maximum.
    precision : {"bf16", "fp32"}
    templates : TemplateSettings, optional
        Make the patterns afresh in each epoch from varied crystals.
    synthetic : SyntheticShare, optional
        Make them afresh, some of them from synthetic crystals.
    realism : RealismSettings, optional
        Make them as instruments give them; patterns then go through the background removal, in training
        and in use.
    """

    variant: Literal["paper", "released"] = "paper"
    dropout: float = 0.0
    groups: Literal[144, 230] = 144
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 3e-3
    warm_up: float = 0.1
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    average_decay: float = 0.999
    input_transform: Literal["none", "sqrt"] = "none"
    precision: Literal["bf16", "fp32"] = "bf16"
    templates: TemplateSettings | None = None
    synthetic: SyntheticShare | None = None
    realism: RealismSettings | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work; msgspec reports a ValueError as a validation error."""
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError("epochs must be at least 1 and batch_size at least 2")
        if not 0 < self.learning_rate < 1 or not 0 <= self.warm_up < 1 or not 0 <= self.dropout < 1:
            raise ValueError("learning_rate must lie in (0, 1), warm_up and dropout in [0, 1)")
        if not 0 <= self.average_decay < 1 or not 0 <= self.label_smoothing < 1:
            raise ValueError("average_decay and label_smoothing must lie in [0, 1)")
        if not (self.weight_decay >= 0 and self.clip_norm > 0):
            raise ValueError("weight_decay must be at least 0 and clip_norm above 0")


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises
    ------
    UsageError
        There is no such file.
    InputError
        It is no valid recipe; the offending field is named.
    """
    if not path.is_file():
        raise UsageError(f"recipe {path} does not exist")
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Recipe)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InputError(f"recipe {path}: {error}") from error
