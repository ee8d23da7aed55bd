"""Ranks of logits where the logits are: the torch form of `hxrd.classify.ranking`."""

import functools

import torch
from torch import Tensor

from hxrd.classify.labels import Grouping
from hxrd.classify.ranking import Ranking

FEW = 16  # up to here the largest is looked for again and again; beyond, all are sorted


@torch.inference_mode()
def rank_tensors(logits: Tensor, ranking: Ranking) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four arrays of `Ranks` of logits (n, n_classes), on their device."""
    probabilities = torch.softmax(logits.double() / ranking.temperature, dim=1)
    entries, *others = ranking.groupings
    if entries is None:
        places = logits.new_zeros((len(logits), 0), dtype=torch.int64)
        likely = probabilities.new_zeros((len(logits), 0))
    else:
        places, likely = _largest(_summed(probabilities, entries), ranking.k)
    best = [_best(probabilities, grouping) for grouping in others]
    return (
        places.to(torch.int16),
        likely,
        torch.stack([place for place, _ in best], dim=1).to(torch.int16),
        torch.stack([likely for _, likely in best], dim=1),
    )


def _summed(probabilities: Tensor, grouping: Grouping) -> Tensor:
    return probabilities @ _membership(grouping, probabilities.device)


@functools.lru_cache(maxsize=64)
def _membership(grouping: Grouping, device: torch.device) -> Tensor:
    return torch.from_numpy(grouping.membership).to(device)


def _largest(summed: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return places and values of the k largest in each row; the first of equal ones comes first."""
    if k > FEW:
        likely, places = summed.sort(dim=1, descending=True, stable=True)
        return places[:, :k], likely[:, :k]
    found = []
    left = summed
    for _ in range(k):
        found.append(left.argmax(dim=1, keepdim=True))
        left = left.scatter(1, found[-1], -torch.inf)
    places = torch.cat(found, dim=1)
    return places, summed.gather(1, places)


def _best(probabilities: Tensor, grouping: Grouping | None) -> tuple[Tensor, Tensor]:
    if grouping is None:
        nothing = probabilities.new_zeros(len(probabilities))
        return torch.full_like(nothing, -1, dtype=torch.int64), nothing
    likely, place = _summed(probabilities, grouping).max(dim=1)
    return place, likely
