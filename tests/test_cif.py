"""CIF files: their data blocks, and what is refused, with its reason."""

import gzip
import re

import pytest
from written_cifs import GROUP, HEXAGONAL, cif_text, operations_loop, rejection_of, written

from hxrd.crystal.cif import crystals_from_cif, read_cif
from hxrd.errors import InputError, Rejected, UsageError


def test_several_blocks(tmp_path):
    group = f"{GROUP} 'F m -3 m'\n"
    text = "data_global\n_journal_year 1999\n"
    text += cif_text(header=group + "_database_code_ICSD 18189", name="first")
    text += cif_text(header=group, name="second", sites=("Xx1 Xx 0 0 0 1",))
    text += cif_text(header=group, name="third")
    path = written(tmp_path, text)
    outcomes = list(crystals_from_cif(path))
    assert [name for name, _ in outcomes] == ["18189", "second", "third"]
    assert [isinstance(outcome, Rejected) for _, outcome in outcomes] == [False, True, False]
    assert outcomes[2][1].identifier == "third"
    with pytest.raises(Rejected, match=r"crystal\.cif: second: unknown element"):
        read_cif(path)


def test_repeated_and_missing_block_names(tmp_path):
    text = cif_text(name="") + cif_text(name="a") + cif_text(name="a")
    assert [name for name, _ in crystals_from_cif(written(tmp_path, text))] == ["crystal", "a", "a#2"]


def test_gzipped_and_latin_1(tmp_path):
    path = tmp_path / "crystal.cif.gz"
    path.write_bytes(gzip.compress(cif_text(header="_publ_author_name 'Müller'").encode("latin-1")))
    assert len(read_cif(path)) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sites": ("X1 Xx 0 0 0 1",)}, "unknown element 'Xx'"),
        ({"sites": ("Na1 Na 0 0 0 1.2",)}, r"occupancy 1.2 of Na"),
        ({"sites": ("Na1 Na 0 0 0 0",)}, "occupancy 0 of Na"),
        ({"sites": ("Na1 Na 0 0 0 -0.5",)}, "occupancy -0.5 of Na"),
        ({"sites": ("Na1 Na 0 0 0 abc",)}, "occupancy nan of Na"),
        ({"sites": ("Na1 Na 0 0 0 1", "K1 K 0 0 0.01 1")}, "overlapping atoms: Na and K"),
        ({"sites": ("Na1 Na 0 ? 0 1",)}, "site Na1 has no coordinates"),
        ({"sites": ("Na1 Na 0 half 0 1",)}, "site Na1 has no coordinates"),
        ({"cell": (0, 5, 5, 90, 90, 90)}, "absurd cell"),
        ({"cell": (5, 5, 5, 120, 120, 120)}, "absurd cell"),
        ({"cell": ("?", 5, 5, 90, 90, 90)}, "absurd cell: a length or angle is missing"),
        ({"header": f"{GROUP} 'F m -3 m'", "cell": HEXAGONAL}, "do not fit the cell"),
        ({"header": f"{GROUP} 'Q 9 9'"}, "unknown space group 'Q 9 9'"),
        ({"header": operations_loop("x,y,z", "garbage")}, "cannot be read"),
        ({"header": operations_loop("x,y,z", "-y,x,z")}, "form no group"),
        ({"header": f"{GROUP} 'F m -3 m'\n{operations_loop('x,y,z')}"}, "contradictory"),
    ],
)
def test_rejections_name_their_reason(tmp_path, changes, reason):
    assert re.search(reason, rejection_of(tmp_path, cif_text(**changes)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\x00\x01\x02\xff binary noise", "is binary"),
        (bytes(range(1, 256)) * 20, "no readable CIF"),
        (b"hello world\n", "no readable CIF"),
        (b"data_x\n_cell_length_a 5\n", "holds no atoms"),
        (cif_text().encode()[:-12], "no readable CIF"),
        (cif_text(tail="_text\n;unfinished").encode(), "no readable CIF"),
        (gzip.compress(cif_text().encode())[:60], "cannot be read"),
        (b"\x1f\x8bnot gzip", "cannot be read"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, words):
    path = tmp_path / "broken.cif"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_cif(path)
    assert "broken.cif" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_directory_missing_file_and_huge_file(tmp_path):
    with pytest.raises(InputError, match="is a directory"):
        read_cif(tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        read_cif(tmp_path / "none.cif")
    huge = tmp_path / "huge.cif.gz"
    with gzip.open(huge, "wb", compresslevel=1) as stream:
        for _ in range(51):
            stream.write(b"#" * 1_000_000)
    with pytest.raises(InputError, match="larger than 50 MB"):
        read_cif(huge)
