"""Small crystals built from their asymmetric units, for tests that need a case of a certain kind."""

import gemmi
import numpy as np

from hxrd.crystal.crystal import Crystal

HALITE = (5.64, 5.64, 5.64, 90, 90, 90)
WURTZITE = (4.1365, 4.1365, 6.7160, 90, 90, 120)


def built(symbol, cell, sites, identifier="built"):
    """A crystal from its asymmetric unit: sites are (species, position[, occupancy[, B]])."""
    operations = gemmi.SpaceGroup(symbol).operations()
    rotations = np.array([operation.rot for operation in operations]) // 24
    translations = np.array([operation.tran for operation in operations]) / 24
    species, positions, occupancy, b_iso = [], [], [], []
    for name, position, *rest in sites:
        images = (rotations @ np.array(position, dtype=float) + translations) % 1
        distinct: list[np.ndarray] = []
        for image in images:
            gaps = [np.abs((image - other + 0.5) % 1 - 0.5).max() for other in distinct]
            if not gaps or min(gaps) > 1e-4:
                distinct.append(image)
        species += [name] * len(distinct)
        positions += distinct
        occupancy += [rest[0] if rest else 1.0] * len(distinct)
        b_iso += [rest[1] if len(rest) > 1 else 0.0] * len(distinct)
    return Crystal(
        identifier=identifier,
        cell=np.array(cell, dtype=float),
        species=tuple(species),
        positions=np.array(positions),
        occupancy=np.array(occupancy, dtype=float),
        b_iso=np.array(b_iso, dtype=float),
        space_group=gemmi.SpaceGroup(symbol).number,
        rotations=rotations.astype(np.int8),
        translations=translations,
    )


CARE_CASES = {
    "special positions": built("F m -3 m", HALITE, [("Na", (0, 0, 0)), ("Cl", (0.5, 0.5, 0.5))]),
    "reflections absent by special positions": built(
        "F d -3 m:2", (5.43,) * 3 + (90,) * 3, [("Si", (1 / 8,) * 3)]
    ),
    "two species on one site": built(
        "F m -3 m", HALITE, [("Na", (0, 0, 0), 0.7), ("K", (0, 0, 0), 0.3), ("Cl", (0.5, 0.5, 0.5), 0.95)]
    ),
    "R cell, hexagonal": built(
        "R -3 c:H",
        (4.9896, 4.9896, 17.0610, 90, 90, 120),
        [("Ca", (0, 0, 0)), ("C", (0, 0, 0.25)), ("O", (0.2568, 0, 0.25))],
    ),
    "R cell, rhombohedral": built(
        "R -3 c:R",
        (6.3753, 6.3753, 6.3753, 46.0764, 46.0764, 46.0764),
        [("Ca", (0, 0, 0)), ("C", (0.25, 0.25, 0.25)), ("O", (0.5068, 0.9932, 0.25))],
    ),
    "triclinic": built(
        "P -1",
        (5.1, 6.2, 7.3, 84, 97, 103),
        [("Cu", (0, 0, 0)), ("S", (0.11, 0.23, 0.37)), ("O", (0.6, 0.3, 0.8))],
    ),
    "monoclinic, no centre": built(
        "P 1 21 1", (4.7, 6.1, 5.9, 90, 104, 90), [("Fe", (0.1, 0, 0.2)), ("N", (0.42, 0.31, 0.77), 1.0, 1.4)]
    ),
    "cubic, lower Laue class": built(
        "P a -3", (5.418,) * 3 + (90,) * 3, [("Fe", (0, 0, 0)), ("S", (0.385, 0.385, 0.385))]
    ),
    "trigonal, Laue class -3m1": built(
        "P -3 m 1", (3.95, 3.95, 6.06, 90, 90, 120), [("Cd", (0, 0, 0)), ("I", (1 / 3, 2 / 3, 0.249))]
    ),
    "absorber without a centre": built(
        "P 63 m c", WURTZITE, [("Cd", (1 / 3, 2 / 3, 0)), ("S", (1 / 3, 2 / 3, 0.377))]
    ),
    "strong absorbers": built(
        "F -4 3 m", (5.6,) * 3 + (90,) * 3, [("Gd", (0, 0, 0)), ("Sm", (0.25, 0.25, 0.25))]
    ),
    "deuterium": built("F m -3 m", (4.07,) * 3 + (90,) * 3, [("Li", (0, 0, 0)), ("D", (0.5, 0.5, 0.5))]),
    "isotope": built("F -4 3 m", (3.615,) * 3 + (90,) * 3, [("11B", (0, 0, 0)), ("N", (0.25, 0.25, 0.25))]),
    "displacement": built(
        "P m -3 m", (3.905,) * 3 + (90,) * 3,
        [("Sr", (0, 0, 0), 1.0, 0.6), ("Ti", (0.5, 0.5, 0.5), 1.0, 0.45), ("O", (0.5, 0.5, 0), 0.9, 1.3)],
    ),
    "lines at very low angles": built(
        "P m m m", (37.9, 4.1, 3.3, 90, 90, 90),
        [("Zr", (0.07, 0, 0)), ("O", (0.21, 0.5, 0)), ("F", (0.38, 0, 0.5)), ("C", (0.5, 0.5, 0.5))],
    ),
}  # fmt: skip
