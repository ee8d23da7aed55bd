"""From reflections to lines, compiled with Numba: weighted for texture, sorted, those of equal d joined."""

import numpy as np

from hxrd.kernels.compiled import compiled
from hxrd.kernels.corrections import march_dollase

_MERGE = 1e-9  # reflections whose s² agree to this relative precision are one line


@compiled
def apply_texture(metric, basis, texture, n_rotations, work, columns, n_columns, strength):
    """Multiply by March & Dollase's weight, averaged over the members of each set."""
    axis = np.zeros(3)
    for i in range(3):
        for j in range(3):
            axis[i] += texture[1 + j] * basis[j, i]
    against = np.empty((48, 3))  # against[R] · h is the scalar product of hR and the preferred plane
    length_squared = 0.0
    for index in range(n_rotations):
        for i in range(3):
            against[index, i] = 0.0
            for j in range(3):
                for k in range(3):
                    against[index, i] += work.rotations[index, i, j] * metric[j, k] * axis[k]
    for i in range(3):
        length_squared += axis[i] * against[0, i]
    if length_squared == 0:
        return
    for column in range(n_columns):
        for j in range(columns.length[column]):
            place = columns.offset[column] + j
            if columns.multiplicity[place] == 0:
                continue
            h, k, l = columns.h[column], columns.k[column], columns.first_l[column] + j
            scale = 1 / (4 * columns.s_squared[place] * length_squared)
            total = 0.0
            for index in range(n_rotations):
                product = h * against[index, 0] + k * against[index, 1] + l * against[index, 2]
                total += march_dollase(min(1.0, product * product * scale), texture[0])
            strength[place] *= total / n_rotations


@compiled
def sorted_places(columns, n_places, strength, order, s_low, s_high):
    """List the places that hold a reflection, by s²; return their number.

    They are dealt into buckets of s² first, so that few are left to be exchanged.
    """
    n = 0
    for place in range(n_places):
        n += columns.multiplicity[place] > 0
    if n == 0:
        return 0
    low, scale = s_low * s_low, n / (s_high * s_high - s_low * s_low) * (1 - 1e-9)
    start = np.zeros(n + 1, np.int64)
    for place in range(n_places):
        if columns.multiplicity[place] > 0:
            start[int((columns.s_squared[place] - low) * scale) + 1] += 1
    for bucket in range(n):
        start[bucket + 1] += start[bucket]
    for place in range(n_places):
        if columns.multiplicity[place] > 0:
            bucket = int((columns.s_squared[place] - low) * scale)
            order[start[bucket]] = place
            start[bucket] += 1
    for i in range(1, n):
        place = order[i]
        value = columns.s_squared[place]
        j = i - 1
        while j >= 0 and columns.s_squared[order[j]] > value:
            order[j + 1] = order[j]
            j -= 1
        order[j + 1] = place
    return n


@compiled
def merge(columns, strength, order, n, line_s_squared, line_strength):
    """Join reflections of equal s² to lines; return their number."""
    last = -1
    for i in range(n):
        place = order[i]
        s_squared = columns.s_squared[place]
        value = columns.multiplicity[place] * strength[place]
        if last >= 0 and s_squared - line_s_squared[last] <= _MERGE * line_s_squared[last]:
            line_strength[last] += value
        else:
            last += 1
            line_s_squared[last], line_strength[last] = s_squared, value
    return last + 1
