"""Draw what each effect of an augmentation does to a pattern, before and after.

Usage: python scripts/plot_augmentations.py [FOLDER]

Writes augment_EFFECT.png for every effect and augment_PRESET.png for every preset into FOLDER, by default
docs/images; docs/augmentation.md shows them.
"""

import sys
from pathlib import Path

import gemmi
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import msgspec
import numpy as np

from hxrd.crystal.crystal import Crystal
from hxrd.physics.instrument import load_instrument
from hxrd.simulate.augment import augmented
from hxrd.simulate.augmentation import Augmentation, augmentation_names, load_augmentation

CHECKOUT = Path(__file__).resolve().parent.parent
BLUE, BLACK, GREY, SHADE = "#1f6fb4", "#1a1a1a", "#9a9a9a", "#f0d9d9"
SEEDS = np.array([4, 7, 8], np.uint64)  # of the presets' pictures
SEED = {"masked_regions": 4}  # of an effect's picture: one that shows it
SEED_ELSE = 20


def crystal_of(name, symbol, cell, sites):
    """Build a crystal from its asymmetric unit: sites are (species, position)."""
    group = gemmi.SpaceGroup(symbol)
    operations = group.operations()
    rotations = np.array([operation.rot for operation in operations]) // operations.sym_ops[0].DEN
    translations = np.array([operation.tran for operation in operations]) / operations.sym_ops[0].DEN
    species, positions = [], []
    for element, position in sites:
        images = np.round((rotations @ np.array(position) + translations) % 1, 6) % 1
        distinct = np.unique(images, axis=0)
        species += [element] * len(distinct)
        positions.append(distinct)
    n_sites = len(species)
    return Crystal(
        name, np.array(cell, float), tuple(species), np.concatenate(positions), np.ones(n_sites),
        np.full(n_sites, 0.5), group.number, rotations.astype(np.int8), translations,
    )  # fmt: skip


# Graf (1961), Wyckoff (1963) and Zintl & Harder (1931): cells and coordinates rounded.
CALCITE = crystal_of(
    "calcite", "R -3 c:H", (4.990, 4.990, 17.061, 90, 90, 120),
    [("Ca", (0, 0, 0)), ("C", (0, 0, 0.25)), ("O", (0.2568, 0, 0.25))],
)  # fmt: skip
FLUORITE = crystal_of(
    "fluorite", "F m -3 m", (5.463, 5.463, 5.463, 90, 90, 90), [("Ca", (0, 0, 0)), ("F", (0.25, 0.25, 0.25))]
)
HYDRIDE = crystal_of(
    "lithium hydride",
    "F m -3 m",
    (4.083, 4.083, 4.083, 90, 90, 90),
    [("Li", (0, 0, 0)), ("H", (0.5, 0.5, 0.5))],
)

# Effect: crystal, settings, what to write above, and the range to enlarge.
EFFECTS = {
    "size": (CALCITE, {"size": [250, 250]}, "crystallites of 250 Å", (60, 90)),
    "microstrain": (CALCITE, {"strain": [3e-3, 3e-3]}, "Δd/d of 0.003", (100, 130)),
    "texture": (
        CALCITE, {"march": [0.75, 0.75], "planes": [[0, 0, 1]]}, "r = 0.75, plane 0 0 1", (20, 60),
    ),
    "lattice_strain": (CALCITE, {"sigma": 0.004}, "edges a and c off by 0.4 % (1 σ)", (90, 130)),
    "thermal_expansion": (
        CALCITE, {"temperature": [600, 600], "coefficient": [2e-5, 2e-5]}, "600 K, 2·10⁻⁵ per K", (100, 130),
    ),
    "displacement_parameters": (
        CALCITE, {"sigma": 0.8}, "ln B of each species off with σ = 0.8", (90, 150),
    ),
    "absorption": (CALCITE, {"mu_r": [1.5, 1.5]}, "cylinder of μR = 1.5", (85, 155)),
    "zero_shift": (CALCITE, {"sigma": 0.12}, "σ = 0.12°", (55, 75)),
    "sample_displacement": (CALCITE, {"sigma": 0.3}, "σ = 0.3°, times cos θ", (35, 55)),
    "impurity": (CALCITE, {"weight_fraction": [0.15, 0.15]}, "15 % of fluorite by weight", (50, 85)),
    "background": (
        CALCITE,
        {"level": [0.15, 0.15], "curve": 0.4, "hump": [0.5, 0.5], "hump_d_spacing": [3, 3], "rise": [2, 2]},
        "level 0.15, hump at d = 3 Å, rise to low angles", (3, 60),
    ),
    "incoherent": (HYDRIDE, {}, "LiH: 80 barn of each H, flat", (45, 75)),
    "counting": (CALCITE, {"total": [2e5, 2e5]}, "2·10⁵ counts in all, on a background of 0.05", (55, 80)),
    "truncation": (CALCITE, {"low": [15, 15], "high": [25, 25]}, "15° and 25° cut off", (110, 155)),
    "masked_regions": (CALCITE, {"width": [4, 4], "most": 2}, "gaps of 4°", (80, 120)),
}  # fmt: skip


def draw(axes, two_theta, before, after, mask, zoom, on_top=False):
    """One pattern, whole on the left and enlarged on the right; noise is drawn under what it is noise of."""
    for axis, limits in zip(axes, ((two_theta[0], two_theta[-1]), zoom), strict=True):
        axis.plot(
            two_theta, before, color=BLACK if on_top else GREY, linewidth=0.7 if on_top else 1.2,
            zorder=3 if on_top else 1.5, label="before",
        )  # fmt: skip
        axis.plot(two_theta, after, color=BLUE, linewidth=0.8, label="after")
        axis.set_xlim(*limits)
        near = (two_theta >= limits[0]) & (two_theta <= limits[1])
        axis.set_ylim(-0.03 * (top := max(before[near].max(), after[near].max())), 1.08 * top)
        if mask is not None and not mask.all():
            axis.fill_between(two_theta, -1, 2, where=~mask, color=SHADE, linewidth=0, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("2θ (degrees)")


def effect_figure(name, target):
    """Draw one effect on its own, with the instrument `paper`."""
    crystal, table, text, zoom = EFFECTS[name]
    instrument = load_instrument("paper")
    noise_floor = {"background": {"level": [0.05, 0.05]}} if name == "counting" else {}
    others = [FLUORITE] if name == "impurity" else []
    without = msgspec.convert(noise_floor, Augmentation)
    settings = msgspec.convert({**noise_floor, name: table}, Augmentation)
    crystals = [crystal, *others]
    seeds = np.full(len(crystals), SEED.get(name, SEED_ELSE), np.uint64)
    before = augmented(crystals, instrument, without, seeds)
    after = augmented(crystals, instrument, settings, seeds)
    figure, axes = plt.subplots(1, 2, figsize=(10, 2.6), width_ratios=[3, 2], layout="constrained")
    mask = None if after.mask is None else after.mask[0]
    draw(
        axes,
        instrument.grid(),
        before.intensity[0],
        after.intensity[0],
        mask,
        zoom,
        on_top=name == "counting",
    )
    axes[0].set_title(f"{name}: {text}", loc="left", fontsize=10)
    axes[1].set_title(f"{zoom[0]}–{zoom[1]}°", loc="left", fontsize=10)
    axes[0].set_ylabel("intensity / max")
    axes[0].legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    figure.savefig(target, dpi=90)
    plt.close(figure)


def preset_figure(name, target):
    """Draw three patterns of one crystal with a preset."""
    preset = load_augmentation(name)
    instrument = load_instrument("xray" if name.endswith("xray") else "paper")
    crystals = [CALCITE] * len(SEEDS) + [FLUORITE]
    seeds = np.append(SEEDS, np.uint64(1))
    before = augmented(crystals, instrument, Augmentation(), seeds)
    after = augmented(crystals, instrument, preset, seeds)
    figure, axes = plt.subplots(
        len(SEEDS), 2, figsize=(10, 5.4), width_ratios=[3, 2], layout="constrained", sharex="col"
    )
    zoom = (25, 60) if instrument.probe == "xray" else (40, 90)
    for row in range(len(SEEDS)):
        mask = None if after.mask is None else after.mask[row]
        draw(axes[row], instrument.grid(), before.intensity[row], after.intensity[row], mask, zoom)
        for axis in axes[row]:
            axis.set_xlabel("2θ (degrees)" if row == len(SEEDS) - 1 else "")
    axes[0, 0].set_title(
        f"{name}: calcite, instrument {instrument.name}, three seeds", loc="left", fontsize=10
    )
    axes[0, 1].set_title(f"{zoom[0]}–{zoom[1]}°", loc="left", fontsize=10)
    axes[0, 0].legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    axes[1, 0].set_ylabel("intensity / max")
    figure.savefig(target, dpi=90)
    plt.close(figure)


def main(arguments):
    """Draw all effects and all presets."""
    if len(arguments) > 1:
        raise SystemExit(__doc__)
    folder = Path(arguments[0]) if arguments else CHECKOUT / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for name in EFFECTS:
        effect_figure(name, folder / f"augment_{name}.png")
    for name in augmentation_names():
        preset_figure(name, folder / f"augment_{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
