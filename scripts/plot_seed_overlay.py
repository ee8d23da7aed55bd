"""Draw the published patterns of c-BN, GeTe and an hcp sample with the preset `paper` laid over.

Usage: python scripts/plot_seed_overlay.py SEED_PATTERNS.npz [OUT.png]

The file holds the twenty public test patterns of Lolla et al. (2022); the picture is
docs/images/seed_overlay.png.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT / "tests"))  # the samples are defined once, in their test

from test_seed_patterns import PUBLISHED, paper_pattern, published  # noqa: E402

BLUE, BLACK, GREY = "#1f6fb4", "#1a1a1a", "#8a8a8a"


def draw(ax, residual_ax, name, two_theta, truth, ours):
    """One sample: the published points, our line, and their difference, magnified, below."""
    ax.plot(two_theta, truth, ".", color=BLACK, markersize=2.5, label="published")
    ax.plot(two_theta, ours, color=BLUE, linewidth=0.9, label="hxrd, preset paper")
    ax.set_title(name, loc="left", fontsize=11)
    ax.set_ylabel("intensity / max")
    ax.spines[["top", "right"]].set_visible(False)
    difference = ours - truth
    residual_ax.axhline(0, color=GREY, linewidth=0.5)
    residual_ax.plot(two_theta, 1000 * difference, color=BLUE, linewidth=0.7)
    residual_ax.set_ylim(-5, 5)
    residual_ax.set_ylabel("Δ × 1000")
    residual_ax.spines[["top", "right"]].set_visible(False)
    worst = np.abs(difference).max()
    residual_ax.text(0.995, 0.95, f"largest |Δ| = {worst:.4f}", transform=residual_ax.transAxes, ha="right",
                     va="top", fontsize=8)  # fmt: skip
    print(f"{name}: largest difference {worst:.4f} of the maximum")


def main(arguments):
    """Read the patterns, simulate the three samples, write the picture."""
    if not 1 <= len(arguments) <= 2:
        raise SystemExit(__doc__)
    target = Path(arguments[1]) if len(arguments) == 2 else CHECKOUT / "docs" / "images" / "seed_overlay.png"
    with np.load(arguments[0]) as arrays:
        patterns = {name: arrays[name] for name in arrays.files}
    figure, axes = plt.subplots(
        6, 1, figsize=(9, 10), sharex=True, height_ratios=[3, 1] * 3, layout="constrained"
    )
    for index, (name, (crystal, (member, row, grid))) in enumerate(PUBLISHED.items()):
        truth, ours = published(patterns, member, row), paper_pattern(crystal, grid)
        two_theta = grid[0] + grid[2] * np.arange(len(truth))
        draw(axes[2 * index], axes[2 * index + 1], name, two_theta, truth, ours)
    axes[0].legend(frameon=False, loc="upper left")
    axes[-1].set_xlabel("2θ (degrees), neutrons, 2.0775 Å")
    axes[-1].set_xlim(20, 155)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
