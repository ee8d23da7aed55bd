"""Pictures of patterns and of class distributions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from hxrd.crystal.symmetry import BRAVAIS_LATTICES, bravais_lattice, crystal_system

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, CALCULATED, FAINT, GRID = "#1f2933", "#d1495b", "#7b8794", "#e4e7eb"
# Okabe and Ito's colours, told apart by the colour-blind.
SYSTEM_COLOURS = {
    "triclinic": "#999999",
    "monoclinic": "#56b4e9",
    "orthorhombic": "#0072b2",
    "tetragonal": "#009e73",
    "trigonal": "#f0e442",
    "hexagonal": "#e69f00",
    "cubic": "#d55e00",
}
PANEL_HEIGHT, WIDTH = 2.4, 9.0  # inches
RESOLUTION = 160  # dots an inch


@dataclass(frozen=True, eq=False)
class PatternPanel:
    """One pattern of a picture.

    Parameters
    ----------
    title : str
        Written above it.
    intensity : ndarray, shape (n_points,)
        The pattern.
    calculated : ndarray, shape (n_points,), optional
        The pattern of the crystal it is thought to be; scaled to the same maximum.
    reflections : ndarray, optional
        2θ in degrees of that crystal's reflections, drawn as ticks.
    """

    title: str
    intensity: NDArray[np.floating]
    calculated: NDArray[np.floating] | None = None
    reflections: NDArray[np.floating] | None = None


def patterns_figure(two_theta: ArrayLike, panels: Sequence[PatternPanel], note: str = "") -> Figure:
    """Draw patterns one above the other over a common axis.

    Parameters
    ----------
    two_theta : array_like, shape (n_points,)
        Degrees.
    panels : sequence of PatternPanel
        At least one.
    note : str
        Probe and wavelength, written beside the axis.

    Returns
    -------
    matplotlib.figure.Figure
        To be saved with ``figure.savefig``.
    """
    angles = np.asarray(two_theta, dtype=np.float64)
    figure = Figure(figsize=(WIDTH, PANEL_HEIGHT * len(panels) + 0.7), dpi=RESOLUTION, layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        _draw_pattern(ax, angles, panel)
    axes[0].set_xlim(angles[0], angles[-1])
    axes[-1].set_xlabel(f"2θ (degrees){'   ' if note else ''}{note}", color=INK)
    return figure


def class_distribution_figure(space_group: ArrayLike, title: str = "") -> Figure:
    """Draw how many patterns each space group and each Bravais lattice has.

    Parameters
    ----------
    space_group : array_like of int
        1 to 230; 0 (unknown) is left out.
    title : str
        Written above.

    Returns
    -------
    matplotlib.figure.Figure
    """
    numbers = np.asarray(space_group, dtype=np.int64)
    numbers = numbers[(numbers >= 1) & (numbers <= 230)]
    counts = np.bincount(numbers, minlength=231)[1:]
    lattices = [bravais_lattice(number) for number in range(1, 231)]
    by_lattice = {
        name: int(counts[[lattice == name for lattice in lattices]].sum()) for name in BRAVAIS_LATTICES
    }
    figure = Figure(figsize=(WIDTH, 5.6), dpi=RESOLUTION, layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 2))
    systems = [crystal_system(number) for number in range(1, 231)]
    upper.bar(range(1, 231), counts, width=0.9, color=[SYSTEM_COLOURS[system] for system in systems])
    upper.set_xlim(0, 231)
    upper.set_xlabel("space group", color=INK)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)
    handles = [Patch(color=colour, label=system) for system, colour in SYSTEM_COLOURS.items()]
    upper.legend(
        handles=handles, ncols=7, frameon=False, fontsize=7.5, loc="lower right", bbox_to_anchor=(1, 1)
    )
    bars = lower.bar(list(by_lattice), list(by_lattice.values()), width=0.75, color=INK)
    lower.bar_label(
        bars, labels=[f"{count:,}" for count in by_lattice.values()], fontsize=7, color=INK, padding=1
    )
    lower.set_xlabel("Bravais lattice", color=INK)
    for ax, values in ((upper, counts), (lower, np.array(list(by_lattice.values())))):
        _count_axis(ax, values)
    return figure


def _draw_pattern(ax: "Axes", angles: NDArray[np.float64], panel: PatternPanel) -> None:
    peak = float(np.nanmax(panel.intensity, initial=0.0)) or 1.0
    if panel.calculated is None:
        ax.plot(angles, panel.intensity, color=INK, linewidth=0.9)
    else:
        scaled = panel.calculated * (peak / (float(panel.calculated.max()) or 1.0))
        difference = panel.intensity - scaled
        lowered = difference - 0.16 * peak - max(float(np.nanmax(difference, initial=0.0)), 0.0)
        ax.plot(angles, panel.intensity, ".", color=INK, markersize=2.2, label="pattern")
        ax.plot(angles, scaled, color=CALCULATED, linewidth=0.8, label="calculated")
        ax.plot(angles, lowered, color=FAINT, linewidth=0.6, label="difference")
        ax.legend(
            frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.99), ncols=3, borderaxespad=0
        )
    if panel.reflections is not None:
        ax.vlines(panel.reflections, -0.12 * peak, -0.05 * peak, color=CALCULATED, linewidth=0.6)
    ax.set_title(panel.title, loc="left", fontsize=9, color=INK)
    ax.set_ylabel("intensity", color=INK)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value >= 0 else ""))
    ax.xaxis.set_major_locator(MaxNLocator(16, steps=[1, 2, 5, 10]))
    _quiet(ax)


def _count_axis(ax: "Axes", counts: NDArray[np.int64]) -> None:
    """Scale the counts by their logarithm where they span more than two decades."""
    largest = int(counts.max(initial=1))
    if largest > 100:
        ax.set_yscale("symlog", linthresh=1)
        ax.set_ylim(0, largest * 2.5)
    else:
        ax.set_ylim(0, largest * 1.15 or 1)
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.set_ylabel("patterns", color=INK)
    _quiet(ax)


def _quiet(ax: "Axes") -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.tick_params(colors=INK, labelsize=8, width=0.6)
    ax.grid(axis="y", color=GRID, linewidth=0.5)
    ax.set_axisbelow(True)
