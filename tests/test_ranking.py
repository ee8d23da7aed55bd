"""Ranks of logits: NumPy, the compiled kernel and torch give the same."""

import numpy as np
import pytest
import torch
from classified import CLASSES, columns, model_metadata, random_logits

from hxrd.classify.backends.torch_ranks import rank_tensors
from hxrd.classify.labels import Labels
from hxrd.classify.ranking import LATTICE, Ranking, Ranks
from hxrd.crystal.symmetry import SPACE_GROUPS_144

FORMS = {
    "numpy": lambda logits, ranking: ranking.ranks(logits, compiled=False),
    "compiled": lambda logits, ranking: ranking.ranks(logits, compiled=True),
    "torch": lambda logits, ranking: Ranks(
        *(tensor.numpy() for tensor in rank_tensors(torch.from_numpy(logits), ranking))
    ),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def ranking_of(topk=5, **changes):
    return columns(topk=topk, **changes).ranking


def check_equal(one, other):
    assert np.array_equal(one.entries, other.entries)
    assert np.array_equal(one.best, other.best)
    assert np.allclose(one.probabilities, other.probabilities, rtol=1e-12, atol=0)
    assert np.allclose(one.best_probabilities, other.best_probabilities, rtol=1e-12, atol=0)


@every_form
@pytest.mark.parametrize("topk", [1, 5, 20, 500])
@pytest.mark.parametrize("classes", [CLASSES, SPACE_GROUPS_144, tuple(range(1, 231))], ids=len)
def test_ranks_equal_a_plain_recount(form, classes, topk):
    ranking = ranking_of(topk, classes=classes, temperature=1.7)
    logits = random_logits(40, len(classes))
    ranks = form(logits, ranking)
    exponentials = np.exp(logits.astype(float) / 1.7)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    entries, *others = ranking.groupings
    k = min(topk, len(entries.names))
    for row, values in enumerate(probabilities):
        sums = np.bincount(entries.part_of_class, weights=values)
        order = sorted(range(len(sums)), key=lambda part: (-sums[part], part))[:k]
        assert ranks.entries[row].tolist() == order
        assert np.allclose(ranks.probabilities[row], sums[order], rtol=1e-12)
        for place, grouping in enumerate(others):
            sums = np.bincount(grouping.part_of_class, weights=values)
            assert ranks.best[row, place] == sums.argmax()
            assert ranks.best_probabilities[row, place] == pytest.approx(sums.max(), rel=1e-12)


@every_form
@pytest.mark.parametrize("topk", [3, 40])
def test_equal_probabilities_rank_in_the_models_order(form, topk):
    classes = (2, 14, 62, 166, 194, 225, 227, 229)  # no twins among them
    logits = np.zeros((2, len(classes)), np.float32)
    logits[1, [6, 3]] = 2.0
    ranks = form(logits, ranking_of(topk, classes=classes))
    assert ranks.entries[0, :3].tolist() == [0, 1, 2]
    assert ranks.entries[1, :3].tolist() == [3, 6, 0]


@every_form
def test_a_lattice_model_has_lattices_only(form):
    described = model_metadata(task="bravais", classes=("cF", "hP", "aP"))
    ranks = form(random_logits(4, 3), Ranking.of_model(described, Labels.of_model(described), topk=5))
    assert ranks.entries.shape == ranks.probabilities.shape == (4, 0)
    assert ranks.best[:, LATTICE].tolist() == random_logits(4, 3).argmax(axis=1).tolist()
    others = np.delete(ranks.best, LATTICE, axis=1)
    assert (others == -1).all()


@every_form
def test_rows_of_no_meaning_stay_within_bounds(form):
    logits = random_logits(6)
    logits[0], logits[2], logits[4, 3] = np.nan, np.inf, -np.inf
    ranking = ranking_of(5)
    ranks = form(logits, ranking)
    assert ((ranks.entries >= 0) & (ranks.entries < ranking.n_parts[0])).all()
    assert ((ranks.best >= 0) & (ranks.best < ranking.n_parts[1:])).all()
    good = [1, 3, 5]
    alone = form(logits[good], ranking)
    assert np.array_equal(ranks.entries[good], alone.entries)
    assert np.array_equal(ranks.probabilities[good], alone.probabilities)


@every_form
def test_large_logits_do_not_overflow(form):
    logits = np.zeros((1, len(CLASSES)), np.float32)
    logits[0, 2], logits[0, 4] = 3e38, -3e38
    ranks = form(logits, ranking_of(2))
    assert ranks.entries[0, 0] == 2
    assert ranks.probabilities[0].tolist() == [1.0, 0.0]


@every_form
def test_no_patterns(form):
    ranks = form(random_logits(0), ranking_of(5))
    assert len(ranks) == 0
    assert ranks.entries.shape == (0, 5)


def test_the_forms_agree_on_many_patterns():
    ranking = ranking_of(10, classes=SPACE_GROUPS_144, temperature=0.8)
    logits = random_logits(3000, 144, seed=4)
    one, two, three = (form(logits, ranking) for form in FORMS.values())
    check_equal(one, two)
    check_equal(one, three)


def test_ranks_from_a_row_on():
    ranks = ranking_of(3).ranks(random_logits(9), compiled=False)
    later = ranks.after(4)
    assert len(later) == 5
    check_equal(later, ranking_of(3).ranks(random_logits(9)[4:], compiled=False))
