"""Which bundled model fits the patterns, where the user names none."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from hxrd.classify.inputs import ArchiveInput, Concatenation, PatternInput
from hxrd.errors import InputError, UsageError
from hxrd.models.preprocess import Grid
from hxrd.models.registry import ModelEntry, ModelMetadata, list_models
from hxrd.physics.instrument import Instrument, load_instrument, preset_names

AUTO = "auto"
CLEAN, REALISTIC = "neutron-clean", "neutron"  # for simulated patterns as they come, and for all others
SAME_WAVELENGTH = 1e-6  # relative


def common_probe(patterns: Concatenation) -> str:
    """Return the probe of all usable inputs.

    Raises
    ------
    InputError
        None of them is usable.
    UsageError
        They differ.
    """
    usable = patterns.usable
    if not usable:
        first = patterns.inputs[0].read(0, 1)
        more = f" (and {len(patterns.inputs) - 1} more)" if len(patterns.inputs) > 1 else ""
        raise InputError(f"no usable input: {first.source_id[0]}: {first.reason[0]}{more}")
    for one in usable:
        if one.probe != usable[0].probe:
            raise UsageError(
                f"{usable[0].name} holds {usable[0].probe} patterns and {one.name} {one.probe} ones; "
                "classify them apart"
            )
    return usable[0].probe


def choose_model(patterns: Concatenation, entries: Sequence[ModelEntry] | None = None) -> str:
    """Return the name of the bundled model for these patterns.

    Clean patterns, simulated with the very instrument that `neutron-clean` was trained for, get that model;
    all others the realistic one. Where only one of the two is bundled it serves for both.

    Parameters
    ----------
    patterns : Concatenation
        At least one usable input.
    entries : sequence of ModelEntry, optional
        To choose from; the bundled models where left out.

    Raises
    ------
    UsageError
        The inputs' probes differ, or no bundled model is for their probe.
    InputError
        No input is usable.
    """
    probe = common_probe(patterns)
    if entries is None:
        entries = [entry for entry in list_models() if entry.origin == "bundled"]
    fitting = {
        entry.name: entry.metadata
        for entry in entries
        if entry.metadata is not None and entry.metadata.probe == probe and entry.name in (CLEAN, REALISTIC)
    }
    if not fitting:
        raise UsageError(f"no bundled model is for {probe} patterns; give --model NAME or FILE.safetensors")
    clean = fitting.get(CLEAN)
    if clean is not None and (len(fitting) == 1 or all(is_clean(one, clean) for one in patterns.usable)):
        return CLEAN
    return REALISTIC


def is_clean(patterns: PatternInput, metadata: ModelMetadata) -> bool:
    """Tell whether an input holds simulated patterns of just the kind that a model was trained on.

    That is: an archive of `hxrd simulate` without augmentation, of the same instrument, wavelength and grid,
    normalised to the maximum.
    """
    if not isinstance(patterns, ArchiveInput):
        return False
    archive = patterns.archive
    provenance = archive.provenance
    grid = Grid.of_range(*metadata.grid, metadata.wavelength).two_theta
    return (
        "simulate" in str(provenance.get("command", "")).split()
        and not provenance.get("augmentation")
        and archive.attributes["normalization"] in ("max", "maximum")
        and _is_preset(provenance, metadata.provenance.get("instrument", "paper"))
        and abs(archive.wavelength / metadata.wavelength - 1) < SAME_WAVELENGTH
        and archive.n_points == len(grid)
        and bool(np.allclose(archive.two_theta, grid, rtol=0, atol=1e-6))
    )


def _is_preset(provenance: Mapping[str, Any], name: str) -> bool:
    """Tell whether an archive was simulated with the peak shape and table of a preset, whatever its name."""
    if name not in preset_names():
        return False
    try:
        settings = msgspec.convert(provenance.get("instrument_settings"), Instrument)
    except msgspec.ValidationError:
        return False
    preset = load_instrument(name)
    shape = set(Instrument.__struct_fields__) - {"name", "description", "source", "wavelengths", "two_theta"}
    return all(getattr(settings, field) == getattr(preset, field) for field in shape)
