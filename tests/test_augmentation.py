"""Augmentations: their files, what they draw, and what the patterns then show."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from built_crystals import CARE_CASES, built
from scipy import stats

from hxrd.errors import InputError, UsageError
from hxrd.kernels import counting
from hxrd.physics.instrument import load_instrument
from hxrd.simulate import effects
from hxrd.simulate.augment import drawn_background, drawn_conditions, drawn_gaps
from hxrd.simulate.augmentation import Augmentation, augmentation_names, load_augmentation
from hxrd.simulate.variation import displaced, strained_cells

INSTRUMENT = load_instrument("paper")
TWO_THETA = INSTRUMENT.grid()
SEEDS = np.random.default_rng(11).integers(0, 2**63, 4000).astype(np.uint64)
LIKELY = 1e-3  # least probability of a distribution test: seeds are fixed, so it passes always or never


def made(**tables):
    return msgspec.convert(tables, Augmentation)


def log_even(low, high):
    return stats.loguniform(low, high)


def even(low, high):
    return stats.uniform(low, high - low)


# --- files


@pytest.mark.parametrize("name", ["mild", "noise", "realistic-neutron", "realistic-xray"])
def test_presets_say_what_they_are_for_and_where_their_numbers_come_from(name):
    preset = load_augmentation(name)
    assert preset.name == name
    assert preset.description
    assert preset.source


def test_every_preset_is_named():
    assert augmentation_names() == ["mild", "noise", "realistic-neutron", "realistic-xray"]


def test_the_realistic_presets_have_all_effects_of_their_probe():
    off = {
        name: {field for field in preset.__struct_fields__ if getattr(preset, field) is None}
        for name in ("realistic-neutron", "realistic-xray")
        for preset in [load_augmentation(name)]
    }
    assert off == {"realistic-neutron": set(), "realistic-xray": {"incoherent"}}


def test_presets_bound_what_would_make_a_label_wrong():
    for name in augmentation_names():
        preset = load_augmentation(name)
        if preset.texture is not None:
            assert 0.5 <= preset.texture.march[0] <= preset.texture.march[1] <= 2
        if preset.impurity is not None:
            assert preset.impurity.phases * preset.impurity.weight_fraction[1] <= 0.2


def test_every_effect_and_preset_is_described_with_its_picture():
    docs = Path(__file__).resolve().parent.parent / "docs"
    text = (docs / "augmentation.md").read_text(encoding="utf-8")
    named = {"name", "description", "source", "least_left"}
    effects_of_it = [field for field in Augmentation.__struct_fields__ if field not in named]
    for name in effects_of_it:
        assert f"### `{name}`" in text
    for name in [*effects_of_it, *augmentation_names()]:
        assert f"(images/augment_{name}.png)" in text
        assert (docs / "images" / f"augment_{name}.png").is_file()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[sise]\nsize = [10, 20]", "unknown field `sise`"),
        ("[size]\nsizes = [10, 20]", "unknown field `sizes` - at `\\$.size`"),
        ("[size]\nsize = [200, 100]", "size must be a range .* at `\\$.size`"),
        ("[size]\nsize = [200, nan]", "size must be a range"),
        ("[counting]\ntotal = [0, 100]", "total must be a range"),
        ("[microstrain]\nstrain = [1e-4, 1e-3]\nprobability = 1.5", "probability must lie in"),
        ("[texture]\nmarch = [0.5, 2]\nplanes = [[0, 0, 0]]", "planes must name"),
        ("[impurity]\nweight_fraction = [0.1, 0.3]\nphases = 2", "the labelled phase"),
        ("[background]\nlevel = [0.1, 0.2]\ncurve = 0.9", "curve must lie in"),
        ("least_left = 2.0", "least_left must lie in"),
        ("[size]\n", "missing required field `size`"),
        ("size =", "Invalid value"),
    ],
)
def test_impossible_files_are_refused_by_the_name_of_the_field(tmp_path, text, told):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=told) as caught:
        load_augmentation(str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_users_file_is_read_and_named_after_itself(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[counting]\ntotal = [1e5, 1e6]\n")
    mine = load_augmentation(str(file))
    assert mine == Augmentation(name="mine", counting=effects.Counting(total=(1e5, 1e6)))


def test_unknown_presets_files_and_bytes_are_told(tmp_path):
    with pytest.raises(UsageError, match="choose one of mild, noise"):
        load_augmentation("strong")
    with pytest.raises(UsageError, match="does not exist"):
        load_augmentation(str(tmp_path / "absent.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as text"):
        load_augmentation(str(tmp_path / "bytes.toml"))


# --- distributions


@pytest.mark.parametrize(
    ("tables", "drawn", "expected"),
    [
        (
            {"size": {"size": [100, 5000]}},
            lambda c: 0.9 * 2.0775 / np.radians(c.resolution[:, 3] - INSTRUMENT.lorentzian_x),
            log_even(100, 5000),
        ),
        (
            {"microstrain": {"strain": [1e-4, 5e-3]}},
            lambda c: np.radians(c.resolution[:, 4]) / 4,
            log_even(1e-4, 5e-3),
        ),
        ({"texture": {"march": [0.6, 1.5]}}, lambda c: c.texture[:, 0], log_even(0.6, 1.5)),
        ({"absorption": {"mu_r": [0.2, 1.7]}}, lambda c: c.absorption, even(0.2, 1.7)),
        ({"zero_shift": {"sigma": 0.04}}, lambda c: c.zero_shift, stats.norm(0, 0.04)),
        ({"sample_displacement": {"sigma": 0.03}}, lambda c: c.displacement, stats.norm(0, 0.03)),
    ],
    ids=["size", "microstrain", "texture", "absorption", "zero_shift", "sample_displacement"],
)
def test_conditions_have_the_distribution_written_down(tables, drawn, expected):
    conditions = drawn_conditions(INSTRUMENT, made(**tables), SEEDS)
    assert stats.kstest(drawn(conditions), expected.cdf).pvalue > LIKELY


@pytest.mark.parametrize(
    ("tables", "column"),
    [
        ({"size": {"size": [100, 5000]}}, lambda c: c.resolution[:, 3]),
        ({"microstrain": {"strain": [1e-4, 5e-3]}}, lambda c: c.resolution[:, 4]),
        ({"texture": {"march": [0.6, 0.9]}}, lambda c: c.texture[:, 0]),
        ({"absorption": {"mu_r": [0.2, 1.7]}}, lambda c: c.absorption),
        ({"zero_shift": {"sigma": 0.04}}, lambda c: c.zero_shift),
        ({"sample_displacement": {"sigma": 0.03}}, lambda c: c.displacement),
    ],
    ids=["size", "microstrain", "texture", "absorption", "zero_shift", "sample_displacement"],
)
def test_an_effect_is_applied_with_its_probability(tables, column):
    table = next(iter(tables.values()))
    off = column(drawn_conditions(INSTRUMENT, Augmentation(), SEEDS[:1]))[0]
    drawn = column(
        drawn_conditions(INSTRUMENT, made(**{next(iter(tables)): {**table, "probability": 0.3}}), SEEDS)
    )
    assert np.mean(drawn != off) == pytest.approx(0.3, abs=0.03)
    never = made(**{next(iter(tables)): {**table, "probability": 0.0}})
    assert np.all(column(drawn_conditions(INSTRUMENT, never, SEEDS)) == off)


def test_preferred_planes_are_equally_likely():
    texture = {"march": [0.6, 1.5], "planes": [[0, 0, 1], [1, 1, 0], [2, 1, -1]]}
    drawn = drawn_conditions(INSTRUMENT, made(texture=texture), SEEDS).texture[:, 1:]
    planes, counts = np.unique(drawn, axis=0, return_counts=True)
    assert sorted(map(tuple, planes.astype(int))) == [(0, 0, 1), (1, 1, 0), (2, 1, -1)]
    assert stats.chisquare(counts).pvalue > LIKELY


def test_effects_draw_independently():
    both = drawn_conditions(
        INSTRUMENT, made(zero_shift={"sigma": 0.1}, sample_displacement={"sigma": 0.1}), SEEDS
    )
    assert abs(np.corrcoef(both.zero_shift, both.displacement)[0, 1]) < 0.05
    alone = drawn_conditions(INSTRUMENT, made(zero_shift={"sigma": 0.1}), SEEDS)
    np.testing.assert_array_equal(alone.zero_shift, both.zero_shift)


def test_background_terms_have_the_distributions_written_down():
    settings = effects.Background(
        level=(0.01, 0.3), curve=0.5, hump=(0.1, 0.6), hump_d_spacing=(2, 4), hump_fwhm=(6, 20),
        rise=(0.5, 2), rise_decay=(1, 6), probability=0.8,
    )  # fmt: skip
    terms = drawn_background(settings, 2.0775, SEEDS)
    assert np.mean(terms[:, 0] > 0) == pytest.approx(0.8, abs=0.03)
    expected = {
        0: log_even(0.01, 0.3), 1: even(-0.5, 0.5), 2: even(-0.125, 0.125), 4: even(-1 / 32, 1 / 32),
        5: even(0.1, 0.6), 7: even(6, 20), 8: even(0.5, 2), 9: even(1, 6),
    }  # fmt: skip
    for column, distribution in expected.items():
        drawn = terms[terms[:, 0] > 0, column]
        assert stats.kstest(drawn, distribution.cdf).pvalue > LIKELY
    d_spacing = 2.0775 / (2 * np.sin(np.radians(terms[:, 6] / 2)))
    assert stats.kstest(d_spacing, even(2, 4).cdf).pvalue > LIKELY


def test_background_is_nowhere_negative():
    terms = drawn_background(effects.Background(level=(0.1, 0.1), curve=0.7), 1.0, SEEDS[:500])
    for row in terms:
        out = np.zeros(200, np.float32)
        counting.add_background(row, 3.0, 0.7, out)
        assert out.min() > 0
        assert out.mean() == pytest.approx(0.1, rel=0.4)


def test_gaps_have_the_distributions_written_down():
    tables = {
        "truncation": {"low": [2, 9], "high": [1, 20]},
        "masked_regions": {"width": [0.5, 5], "most": 3, "probability": 0.5},
    }
    gaps = drawn_gaps(made(**tables), INSTRUMENT, SEEDS)
    n_points = len(TWO_THETA)
    width = (gaps[:, :, 1] - gaps[:, :, 0]) * 0.05
    low, high = gaps[:, 0], gaps[:, 1]
    assert not low[:, 0].any()
    assert np.all(high[:, 1] == n_points)
    grain = 0.05 * (np.random.default_rng(0).random(len(SEEDS)) - 1)  # whole points
    assert stats.kstest(width[:, 0] + grain, even(2, 9).cdf).pvalue > LIKELY
    assert stats.kstest(width[:, 1] - grain - 0.05, even(1, 20).cdf).pvalue > LIKELY
    regions = gaps[:, 2:]
    number = (regions[:, :, 1] > regions[:, :, 0]).sum(axis=1)
    shares = np.bincount(number, minlength=4)
    assert stats.chisquare(shares, np.array([1 / 2, 1 / 6, 1 / 6, 1 / 6]) * len(SEEDS)).pvalue > LIKELY
    whole = regions[
        (regions[:, :, 0] > 0) & (regions[:, :, 1] < n_points) & (regions[:, :, 1] > regions[:, :, 0])
    ]
    centres = whole.mean(axis=1) / n_points
    inner = centres[(centres > 0.05) & (centres < 0.95)]
    assert stats.kstest(inner, even(0.05, 0.95).cdf).pvalue > LIKELY
    widths = np.log((whole[:, 1] - whole[:, 0]) * 0.05)
    assert widths.mean() == pytest.approx(np.log(0.5 * 5) / 2, abs=0.05)


# --- crystals


@pytest.mark.parametrize("crystal", CARE_CASES.values(), ids=CARE_CASES)
def test_a_strained_cell_keeps_the_point_group(crystal):
    cells = strained_cells([crystal] * 50, made(lattice_strain={"sigma": 0.01}), SEEDS[:50])
    for cell in cells:
        strained = type(crystal)("strained", cell, *[getattr(crystal, name) for name in REST])
        for rotation in crystal.rotations.astype(float):
            moved = rotation.T @ strained.metric @ rotation
            np.testing.assert_allclose(moved, strained.metric, rtol=1e-6, atol=1e-4)
    assert np.std(cells[:, 0] / crystal.cell[0]) == pytest.approx(0.01, rel=0.4)


REST = ("species", "positions", "occupancy", "b_iso", "space_group", "rotations", "translations")
FREE = {
    "special positions": 1, "R cell, hexagonal": 2, "R cell, rhombohedral": 2, "triclinic": 6,
    "monoclinic, no centre": 4, "cubic, lower Laue class": 1, "lines at very low angles": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", FREE)
def test_as_many_strains_are_drawn_as_the_system_leaves_free(name):
    crystal = CARE_CASES[name]
    cells = strained_cells([crystal] * 200, made(lattice_strain={"sigma": 0.01}), SEEDS[:200])
    changes = np.hstack(
        [cells[:, :3] / crystal.cell[:3] - 1, np.radians(cells[:, 3:] - crystal.cell[3:]) / 2]
    )
    values = np.linalg.svd(changes, compute_uv=False) / np.sqrt(200)
    assert np.sum(values > 1e-3) == FREE[name]
    assert np.sum(values > 1e-9) == FREE[name]


def test_strain_and_expansion_have_the_distributions_written_down():
    crystals = [CARE_CASES["triclinic"]] * len(SEEDS)
    cells = strained_cells(crystals, made(lattice_strain={"sigma": 0.003, "probability": 0.5}), SEEDS)
    changes = cells[:, 1] / crystals[0].cell[1] - 1
    angles = np.radians(cells[:, 4] - crystals[0].cell[4]) / 2
    assert np.mean(changes != 0) == pytest.approx(0.5, abs=0.03)
    for drawn in (changes, angles):
        assert stats.kstest(drawn[np.abs(drawn) > 1e-12], stats.norm(0, 0.003).cdf).pvalue > LIKELY
    thermal = {"temperature": [95, 695], "coefficient": [1e-5, 1e-5], "reference": 295}
    grown = strained_cells(crystals, made(thermal_expansion=thermal), SEEDS)
    ratio = grown[:, :3] / crystals[0].cell[:3]
    np.testing.assert_allclose(ratio, np.repeat(ratio[:, :1], 3, axis=1), rtol=1e-12)
    np.testing.assert_array_equal(grown[:, 3:], np.tile(crystals[0].cell[3:], (len(SEEDS), 1)))
    assert stats.kstest((ratio[:, 0] - 1) / 1e-5 + 295, even(95, 695).cdf).pvalue > LIKELY


def test_a_crystal_of_unknown_group_is_only_scaled():
    crystal = built("P -1", (5.1, 6.2, 7.3, 84, 97, 103), [("Cu", (0, 0, 0))])
    nameless = type(crystal)(
        "nameless", crystal.cell, *[0 if name == "space_group" else getattr(crystal, name) for name in REST]
    )
    cell = strained_cells([nameless], made(lattice_strain={"sigma": 0.01}), SEEDS[:1])[0]
    assert cell[0] != crystal.cell[0]
    np.testing.assert_allclose(cell[:3] / crystal.cell[:3], cell[0] / crystal.cell[0])
    np.testing.assert_array_equal(cell[3:], crystal.cell[3:])


def test_displacement_parameters_move_by_species():
    crystal = built(
        "P m -3 m", (3.905,) * 3 + (90,) * 3,
        [("Sr", (0, 0, 0), 1.0, 0.6), ("Ti", (0.5, 0.5, 0.5), 1.0, 0.0), ("O", (0.5, 0.5, 0), 1.0, 1.3)],
    )  # fmt: skip
    settings = made(displacement_parameters={"sigma": 0.3, "missing": [0.4, 0.9]})
    drawn = np.array(displaced([crystal] * len(SEEDS), settings, SEEDS))
    assert np.all(drawn[:, 2:] == drawn[:, 2:3])  # the three oxygens
    strontium, oxygen = np.log(drawn[:, 0] / 0.6), np.log(drawn[:, 2] / 1.3)
    for factor in (strontium, oxygen):
        assert stats.kstest(factor, stats.norm(0, 0.3).cdf).pvalue > LIKELY
    assert abs(np.corrcoef(strontium, oxygen)[0, 1]) < 0.05
    settings = made(displacement_parameters={"sigma": 0.0, "missing": [0.4, 0.9]})
    titanium = np.array(displaced([crystal] * len(SEEDS), settings, SEEDS))[:, 1]
    assert stats.kstest(titanium, even(0.4, 0.9).cdf).pvalue > LIKELY
    settings = made(displacement_parameters={"sigma": 0.3, "probability": 0.0})
    np.testing.assert_array_equal(displaced([crystal], settings, SEEDS[:1])[0], crystal.b_iso)
