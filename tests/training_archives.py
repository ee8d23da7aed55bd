"""Small archives and recipes to train on, from crystals that pymatgen carries."""

from pathlib import Path

import numpy as np

from hxrd.archive import create_archive, open_archive
from hxrd.cli.main import main
from hxrd.crystal.symmetry import SPACE_GROUPS_144
from hxrd.train.config import Recipe
from hxrd.train.streams import ArchiveStream

IDENTIFIERS = (
    *("A_cF4_225_a", "A_cI2_229_a", "A_cF8_227_a", "AB_cF8_216_c_a", "AB_cF8_225_a_b", "AB_cP2_221_b_a"),
    *("A_hP2_194_c", "A_tI2_139_a", "AB_hP2_187_d_a", "AB_tP2_123_a_d", "A_hR1_166_a", "AB_hP4_186_b_a"),
    *("A_mC4_12_i", "AB_oC8_63_c_c", "AB_tP4_129_c_c", "AB_mP4_11_e_e", "A_mP4_4_2a", "AB_oP4_51_e_f"),
    *("AB2_oI6_71_a_i", "AB4_cP5_215_a_e", "A3B2_hP5_164_ad_d", "AB_mC8_15_c_e", "ABC_cF12_216_b_c_a"),
)
GRID = ("10", "130", "0.2")
RECIPE = """epochs = 6
batch_size = 8
precision = "fp32"
dropout = 0.1
average_decay = 0.9
"""
TEMPLATES = RECIPE + "\n[templates]\n"
SMALL = Recipe(epochs=2, batch_size=8, precision="fp32", dropout=0.1, average_decay=0.9)


def simulated_archive(folder: Path, name: str = "train.zarr", n: int = len(IDENTIFIERS)) -> Path:
    """Simulate the first `n` crystals, and one that no table knows."""
    ids = folder / f"{name}.txt"
    ids.write_text("\n".join([*IDENTIFIERS[:n], "unheard of"]) + "\n")
    archive = folder / name
    command = ["simulate", str(ids), "-o", str(archive), "--source", "prototypes", "--two-theta", *GRID, "-q"]
    assert main(command) == 3
    return archive


def recipe_file(folder: Path, text: str = RECIPE, name: str = "recipe.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def archive_stream(archive: Path) -> ArchiveStream:
    return ArchiveStream(open_archive(archive), SPACE_GROUPS_144)


def foreign_archive(path: Path, two_theta: np.ndarray, **changes) -> Path:
    """Write an archive that `hxrd simulate` did not make."""
    fields = {"probe": "neutron", "wavelength": 2.0775, "instrument": "paper", "normalization": "maximum"}
    n = len(SPACE_GROUPS_144[:3])
    with create_archive(
        path, n_patterns=n, two_theta=two_theta, provenance={"command": "test"}, **(fields | changes)
    ) as writer:
        patterns = np.random.default_rng(0).random((n, len(two_theta)), np.float32)
        writer.write_shard(0, patterns, SPACE_GROUPS_144[:n], list("abc")[:n], [1] * n, [None] * n)
    return path
