"""One reflection for each set of equivalents, in all 230 groups: as many, as strong, as the whole sphere."""

import dataclasses

import gemmi
import msgspec
import naive
import numpy as np
import pytest
from built_crystals import built

from hxrd.crystal.crystal import Crystal
from hxrd.kernels import reduction
from hxrd.physics.instrument import load_instrument, with_overrides
from hxrd.physics.packing import pack
from hxrd.simulate.simulate import Sticks, sticks

CELLS = {
    "triclinic": (4.1, 5.3, 6.2, 81, 97, 105),
    "monoclinic": (4.3, 5.1, 6.4, 90, 103, 90),
    "orthorhombic": (4.2, 5.3, 6.1, 90, 90, 90),
    "tetragonal": (4.6, 4.6, 6.3, 90, 90, 90),
    "trigonal": (5.1, 5.1, 6.2, 90, 90, 120),
    "hexagonal": (5.1, 5.1, 6.2, 90, 90, 120),
    "cubic": (5.7, 5.7, 5.7, 90, 90, 90),
}
INSTRUMENT = with_overrides(load_instrument("paper"), two_theta=(3.0, 150.0, 0.05))
STRONG_ABSORBERS = with_overrides(load_instrument("paper"), wavelength="2.5")


def in_group(number: int) -> Crystal:
    """A crystal with one atom on a general position and one on a rotation axis or mirror plane, if any."""
    group = gemmi.get_spacegroup_reference_setting(number)
    general = (0.1371, 0.2713, 0.3917)
    sites = [("Fe", general, 1.0, 0.4), ("O", (0.0421, 0.0421, 0.0421), 0.8, 0.9)]
    return built(group.xhm(), CELLS[group.crystal_system_str()], sites)


def without_symmetry(crystal: Crystal) -> Crystal:
    identity = np.eye(3, dtype=np.int8)[None]
    return dataclasses.replace(crystal, rotations=identity, translations=np.zeros((1, 3)))


def lines(found: Sticks) -> tuple[np.ndarray, np.ndarray]:
    """2θ and intensity of the lines that are there, reflections at one angle joined."""
    angle = np.round(found.two_theta, 7)
    two_theta, line = np.unique(angle, return_inverse=True)
    intensity = np.bincount(line, found.intensity)
    there = intensity > 1e-12 * intensity.max()
    return two_theta[there], intensity[there]


@pytest.mark.parametrize("number", range(1, 231))
def test_symmetry_saves_work_and_changes_nothing(number):
    crystal = in_group(number)
    found, plain = (sticks([each], INSTRUMENT) for each in (crystal, without_symmetry(crystal)))
    for ours, whole in zip(lines(found), lines(plain), strict=True):
        np.testing.assert_allclose(ours, whole, rtol=1e-8)

    d_min, d_max = (INSTRUMENT.wavelength / 2 / np.sin(np.radians(angle / 2)) for angle in (150.0, 3.0))
    hkl, _ = naive.reflection_sphere(crystal.cell, d_min, d_max)
    hkl = hkl[~naive.systematically_absent(hkl, crystal)]
    laue = naive.laue_class(crystal.rotations)
    names, counts = np.unique(naive.largest_equivalent(hkl, laue), axis=0, return_counts=True)
    order = np.lexsort(names.T[::-1])
    ours = naive.largest_equivalent(found.hkl, laue)
    np.testing.assert_array_equal(ours[np.lexsort(ours.T[::-1])], names[order])
    np.testing.assert_array_equal(found.multiplicity[np.lexsort(ours.T[::-1])], counts[order])


@pytest.mark.parametrize("number", [15, 70, 88, 122, 148, 167, 206, 220, 227, 230])
def test_only_what_is_needed_is_kept(number):
    """The primitive cell, the whole Laue class, and half the atoms where a centre pairs them."""
    crystal = in_group(number)
    group = gemmi.get_spacegroup_reference_setting(number)
    batch = pack([crystal], INSTRUMENT)
    work = reduction.new_workspace(len(crystal.species))
    metric, basis, n_rotations, n_centrings, is_centric = reduction.reduced(
        batch.cells[0],
        batch.positions,
        batch.occupancy + batch.species,
        batch.rotations,
        batch.translations,
        reduction.LENIENT,
        work,
    )
    operations = group.operations()
    assert n_centrings == len(operations.cen_ops)
    assert is_centric == operations.is_centrosymmetric()
    assert n_rotations == len(operations.sym_ops) * (1 if is_centric else 2)
    assert np.linalg.det(basis) == pytest.approx(1 / n_centrings)
    assert np.linalg.det(metric) == pytest.approx((n_centrings / crystal.volume) ** 2)
    kept = np.count_nonzero(work.weight)
    assert kept * n_centrings * (2 if is_centric else 1) == len(crystal.species)


def test_broken_symmetry_is_not_used():
    """Operations that the atoms, or the cell, do not obey must not shape the pattern."""
    crystal = in_group(225)
    rng = np.random.default_rng(1)
    moved = dataclasses.replace(
        crystal, positions=crystal.positions + rng.normal(0, 0.01, (len(crystal.species), 3))
    )
    strained = dataclasses.replace(crystal, cell=crystal.cell * np.array([1.01, 1, 1, 1, 1, 1]))
    for broken in (moved, strained):
        found, plain = (sticks([each], INSTRUMENT) for each in (broken, without_symmetry(broken)))
        np.testing.assert_allclose(found.intensity, plain.intensity, rtol=1e-10)


def test_one_atom_moved_a_little_is_noticed():
    crystal = in_group(62)
    positions = crystal.positions.copy()
    positions[3, 1] += 1e-4
    moved = dataclasses.replace(crystal, positions=positions)
    found, plain = (sticks([each], INSTRUMENT) for each in (moved, without_symmetry(moved)))
    np.testing.assert_allclose(found.intensity, plain.intensity, rtol=1e-10)


def test_exchanged_species_are_noticed():
    crystal = in_group(139)
    species = list(crystal.species)
    species[0], species[-1] = species[-1], species[0]
    exchanged = dataclasses.replace(crystal, species=tuple(species))
    found, plain = (sticks([each], INSTRUMENT) for each in (exchanged, without_symmetry(exchanged)))
    np.testing.assert_allclose(found.intensity, plain.intensity, rtol=1e-10)


def test_complex_lengths_and_form_factors_use_symmetry_too():
    crystal = dataclasses.replace(in_group(186))
    species = tuple("Gd" if name == "Fe" else name for name in crystal.species)
    absorbing = dataclasses.replace(crystal, species=species)
    complex_lengths = msgspec.structs.replace(STRONG_ABSORBERS, scattering_table="periodictable")
    for instrument in (complex_lengths, load_instrument("xray")):
        found, plain = (sticks([each], instrument) for each in (absorbing, without_symmetry(absorbing)))
        for ours, whole in zip(lines(found), lines(plain), strict=True):
            np.testing.assert_allclose(ours, whole, rtol=1e-8)


@pytest.mark.parametrize("number", [2, 14, 38, 64, 71, 123, 139, 166, 194, 221, 225, 227, 229])
@pytest.mark.parametrize(
    "shift", [(0.5, 0, 0), (0.5, 0.5, 0), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (0, 0, 1 / 3)]
)
def test_an_atom_a_simple_part_of_the_cell_away_is_noticed(number, shift):
    """What a reflection of even indices cannot see: an atom moved by half a cell."""
    crystal = in_group(number)
    positions = crystal.positions.copy()
    positions[0] += np.array(shift)
    moved = dataclasses.replace(crystal, positions=positions)
    found, plain = (sticks([each], INSTRUMENT) for each in (moved, without_symmetry(moved)))
    for ours, whole in zip(lines(found), lines(plain), strict=True):
        np.testing.assert_allclose(ours, whole, rtol=1e-8)
