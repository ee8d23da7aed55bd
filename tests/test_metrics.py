"""Scores and their intervals, and the scripts that print them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hxrd.errors import InputError
from hxrd.evaluate.metrics import hits_within, share

CHECKOUT = Path(__file__).resolve().parent.parent


def test_hits_count_the_true_class_among_the_best() -> None:
    scores = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3]])
    truth = np.array([0, 0, 2])
    assert hits_within(scores, truth, 1).tolist() == [True, False, False]
    assert hits_within(scores, truth, 2).tolist() == [True, False, True]
    assert hits_within(scores, truth, 3).all()


def test_a_tie_is_no_hit() -> None:
    assert not hits_within(np.zeros((4, 10)), np.arange(4), 5).any()


def test_the_interval_has_the_width_of_a_binomial_share() -> None:
    hits = np.arange(1000) < 600
    found = share(hits)
    assert found.percent == 60
    assert found.n == 1000
    expected = 1.96 * 100 * np.sqrt(0.6 * 0.4 / 1000)
    assert found.high - found.percent == pytest.approx(expected, rel=0.15)
    assert found.percent - found.low == pytest.approx(expected, rel=0.15)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(InputError, match="no pattern"):
        share(np.zeros(0, bool))


def test_the_scripts_print_their_tables(tmp_path: Path) -> None:
    identifiers = tmp_path / "ids.txt"
    identifiers.write_text("A_cF4_225_a\nAB3C_cP5_221_a_c_b\nA_hP2_194_c\n", encoding="utf-8")
    hxrd = Path(sys.executable).parent / "hxrd"
    archive = tmp_path / "a.zarr"
    subprocess.run([hxrd, "simulate", identifiers, "--source", "prototypes", "-o", archive, "-q"], check=True)
    score = [sys.executable, CHECKOUT / "scripts" / "score.py", "neutron-clean", archive]
    table = subprocess.run(score, check=True, capture_output=True, text=True).stdout
    assert "| 3 | space group |" in table
    assert "| 3 | Bravais lattice |" in table

    pattern = CHECKOUT / "scripts" / "examples" / "corundum_1.5403.xye"
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(
        f"id,xy,probe,wavelength_A,space_group_number,single_phase\ncorundum,{pattern},neutron,1.5403,167,yes\n",
        encoding="utf-8",
    )
    measured = [sys.executable, CHECKOUT / "scripts" / "score_measured.py", "neutron", manifest]
    table = subprocess.run(measured, check=True, capture_output=True, text=True).stdout
    assert "| corundum | R-3c |" in table
    assert "one phase(s): n = 1" in table
