"""`hxrd info` and `hxrd plot`: what they say and draw."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from matplotlib.image import imread

from hxrd.archive import create_archive, open_archive
from hxrd.cli.main import main
from hxrd.cli.plot import _panel
from hxrd.evaluate.figures import PatternPanel, class_distribution_figure, patterns_figure
from hxrd.sources import open_sources

FCC = [(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Make an archive of copper, aluminium and a rejected pattern with hxrd simulate."""
    lines = [
        {
            "id": name,
            "space_group": 225,
            "cell": [edge] * 3 + [90] * 3,
            "sites": [[element, *at, 1, None] for at in FCC],
        }
        for name, element, edge in (("copper", "Cu", 3.61), ("aluminium", "Al", 4.05))
    ]
    (tmp_path / "crystals.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (tmp_path / "ids.txt").write_text("copper\naluminium\nunheard of\n")
    command = [
        "simulate",
        str(tmp_path / "ids.txt"),
        "--source",
        f"jsonl:{tmp_path / 'crystals.jsonl'}",
        "-q",
    ]
    assert main(command) == 3
    return tmp_path / "ids.zarr"


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    capsys.readouterr()
    assert main(["info", *arguments]) == 0
    lines = (line.partition("  ") for line in capsys.readouterr().out.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def test_info_tells_what_an_archive_holds(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = told(capsys, str(archive))
    assert said["patterns"] == "3 (2 good, 1 rejected, 0 not written)"
    assert said["points"] == "3041"
    assert said["two_theta"] == "3 to 155 degrees"
    assert (said["probe"], said["wavelength"], said["instrument"]) == ("neutron", "2.0775 Å", "paper")
    assert said["most frequent"] == "225 (2)"
    assert said["seed"] == "0"
    assert said["augmentation"] == "none"
    assert said["rejected"].startswith("row 2, unheard of: ")


def test_info_tells_what_an_archive_was_augmented_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.txt").write_text("A_cF4_225_a\n")
    assert main(["simulate", str(tmp_path / "ids.txt"), "--augment", "noise", "--source", "prototypes"]) == 0
    assert told(capsys, str(tmp_path / "ids.zarr"))["augmentation"] == "noise (background, counting)"


def test_info_of_a_doublet_names_both_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_archive(
        tmp_path / "xray.zarr",
        n_patterns=1,
        two_theta=[10.0, 20.0],
        probe="xray",
        wavelength=[(1.5406, 2 / 3), (1.5444, 1 / 3)],
        instrument="mine",
        normalization="none",
        provenance={},
    ).close()
    said = told(capsys, str(tmp_path / "xray.zarr"))
    assert said["wavelength"] == "1.5406 Å (weight 0.667), 1.5444 Å (weight 0.333)"


def test_info_tells_what_a_model_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hxrd.models.registry import ModelMetadata, save_model
    from hxrd.models.resnet1d import ResNet1D

    metadata = ModelMetadata(
        name="small",
        variant="paper",
        task="space-group",
        classes=(1, 2, 225),
        grid=(3.0, 155.0, 0.05),
        probe="neutron",
        wavelength=2.0775,
        provenance={"epochs": 3},
    )
    save_model(tmp_path / "small.safetensors", ResNet1D(3, variant="paper"), metadata)
    said = told(capsys, str(tmp_path / "small.safetensors"))
    assert said["task"] == "space-group, 3 classes"
    assert said["two_theta"] == "3 to 155 by 0.05 degrees, 3041 points"
    assert said["epochs"] == "3"
    assert len(said["sha256"]) == 64


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_info_tells_what_a_result_holds(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {
        "pattern": [0, 1, 2],
        "bravais_lattice": ["cF", "cF", ""],
        "flag": ["", "low-confidence", "rejected"],
    }
    file = tmp_path / f"result{suffix}"
    if suffix == ".parquet":
        table = pa.table(columns).replace_schema_metadata({"model": "neutron"})
        pyarrow.parquet.write_table(table, file)
    elif suffix == ".csv":
        rows = zip(*columns.values(), strict=True)
        file.write_text("\n".join(",".join(map(str, row)) for row in [columns, *rows]) + "\n")
    else:
        rows = zip(*columns.values(), strict=True)
        file.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    said = told(capsys, str(file))
    assert said["rows"] == "3"
    assert said["columns"] == "pattern, bravais_lattice, flag"
    assert said["lattices"] == "cF (2)"
    assert said["flags"] == "low-confidence (1), rejected (1)"
    assert said.get("model") == ("neutron" if suffix == ".parquet" else None)


def test_a_table_that_is_no_result_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prices.csv").write_text("item,price\nbread,3\n")
    assert main(["info", str(tmp_path / "prices.csv")]) == 1
    assert "no result of hxrd classify" in capsys.readouterr().err


def test_info_describes_the_machine_and_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    said = told(capsys, "--system")
    assert {"hxrd", "python", "processor", "memory", "torch", "numba", "simulation", "zarrs"} <= set(said)
    assert said["network"].startswith(("compiled (", "triton ("))
    assert said["classify"].endswith(("bf16 (AVX512-BF16)", "fp32 (no AVX512-BF16 here)"))
    capsys.readouterr()
    assert main(["info", "--instruments"]) == 0
    assert "paper: " in (presets := capsys.readouterr().out)
    assert "2.0775 Å" in presets


def ink(picture: Path) -> float:
    """Return the part of the picture that is not white."""
    return float((imread(picture)[..., :3].min(axis=-1) < 0.9).mean())


def test_plot_draws_patterns_and_with_a_source_the_calculated_one(archive: Path, tmp_path: Path) -> None:
    source = ["--source", f"jsonl:{tmp_path / 'crystals.jsonl'}"]
    plain, compared = tmp_path / "plain.png", tmp_path / "compared.png"
    assert main(["plot", str(archive), "0", "1", "-o", str(plain)]) == 0
    assert main(["plot", str(archive), "0", "1", "-o", str(compared), *source]) == 0
    assert imread(plain).shape == imread(compared).shape
    assert 0.005 < ink(plain) < ink(compared) < 0.3


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("A_cF4_225_a\n")
    (tmp_path / "gaps.toml").write_text("[truncation]\nlow = [5.0, 6.0]\nhigh = [5.0, 6.0]\n")
    command = ["simulate", str(tmp_path / "ids.txt"), "--augment", str(tmp_path / "gaps.toml")]
    assert main([*command, "--source", "prototypes"]) == 0
    opened = open_archive(tmp_path / "ids.zarr")
    measured = opened.measured(0, 1)
    assert measured is not None
    assert not measured.all()
    np.testing.assert_array_equal(np.isnan(_panel(opened, 0, None).intensity), ~measured[0])


def test_plot_warns_where_the_source_does_not_know_the_crystal(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "crystals.jsonl").write_text(
        (tmp_path / "crystals.jsonl").read_text().replace("aluminium", "alloy")
    )
    command = ["plot", str(archive), "0", "1", "--source", f"jsonl:{tmp_path / 'crystals.jsonl'}"]
    assert main(command) == 0
    printed = capsys.readouterr().err
    assert "no calculated pattern of aluminium" in printed
    assert "no calculated pattern of copper" not in printed
    assert (tmp_path / "ids.png").exists()


def test_the_calculated_pattern_of_an_imported_archive_is_on_its_own_grid(
    tmp_path: Path, archive: Path
) -> None:
    rng = np.random.default_rng(0)
    measured = tmp_path / "measured.zarr"
    with create_archive(
        measured,
        n_patterns=1,
        two_theta=np.cumsum(rng.uniform(0.05, 0.1, 1200)) + 5,
        probe="neutron",
        wavelength=1.54,
        instrument="mine",
        normalization="none",
        provenance={"command": "test"},
    ) as writer:
        writer.write_shard(0, rng.poisson(100, (1, 1200)), [0], ["copper"], [1], [None])
    opened = open_archive(measured)
    panel = _panel(opened, 0, open_sources([f"jsonl:{tmp_path / 'crystals.jsonl'}"]))
    assert panel.calculated is not None
    assert panel.reflections is not None
    assert panel.calculated.shape == opened.two_theta.shape
    strongest = opened.two_theta[panel.calculated.argmax()]
    assert np.abs(panel.reflections - strongest).min() < 0.15
    assert panel.reflections[0] == pytest.approx(2 * np.degrees(np.arcsin(1.54 * np.sqrt(3) / 2 / 3.61)))


def test_class_distribution_has_a_bar_of_the_right_height_for_each_group() -> None:
    figure = class_distribution_figure([225] * 7 + [14] * 3 + [0] * 9, "ten patterns")
    groups, lattices = figure.axes
    heights = [bar.get_height() for bar in groups.patches]
    assert (len(heights), heights[224], heights[13], sum(heights)) == (230, 7, 3, 10)
    labels = [label.get_text() for label in lattices.get_xticklabels()]
    by_lattice = dict(zip(labels, (bar.get_height() for bar in lattices.patches), strict=True))
    assert (len(labels), by_lattice["cF"], by_lattice["mP"], sum(by_lattice.values())) == (14, 7, 3, 10)


def test_many_patterns_are_counted_on_a_logarithmic_axis() -> None:
    assert class_distribution_figure(np.repeat([1, 2], [3, 5000])).axes[0].get_yscale() == "symlog"


def test_the_calculated_pattern_is_scaled_to_the_measured_one() -> None:
    two_theta = np.linspace(10, 20, 101)
    pattern = np.exp(-((two_theta - 15) ** 2) * 8)
    panel = PatternPanel("copper", 500 * pattern, pattern, np.array([15.0]))
    (ax,) = patterns_figure(two_theta, [panel], "neutrons").axes
    measured, calculated, difference = ax.lines
    np.testing.assert_allclose(calculated.get_ydata(), measured.get_ydata())
    assert np.ptp(difference.get_ydata()) == pytest.approx(0, abs=1e-9)


def test_a_pattern_of_zeros_can_be_drawn() -> None:
    assert patterns_figure([1, 2, 3], [PatternPanel("nothing", np.zeros(3), np.zeros(3))]).axes
