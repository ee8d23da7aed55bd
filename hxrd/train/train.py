"""From an archive and a recipe to a calibrated model file."""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

import hxrd
from hxrd.archive.reader import Archive, open_archive
from hxrd.classify.calibration import fit_temperature
from hxrd.crystal.symmetry import SPACE_GROUPS_144
from hxrd.errors import HxrdError, InputError, UsageError
from hxrd.models.registry import ModelMetadata, load_model, save_model
from hxrd.models.resnet1d import STEM_KERNEL
from hxrd.train.config import Recipe
from hxrd.train.loop import Trainer, trim_log
from hxrd.train.streams import (
    ArchiveStream,
    CrystalStream,
    CrystalStreamSpec,
    Validation,
    WorkerStream,
    labelled_rows,
)

logger = logging.getLogger(__name__)

_HELD_OUT = 0.05  # of the archive, where no validation archive is given
_FEW = 100  # patterns; fewer make no score and no temperature
_LOW_CONFIDENCE = 0.3  # a best probability below it is flagged
_SAME_ANGLE = 1e-6  # degrees


def train_model(
    archive_path: Path,
    output: Path,
    recipe: Recipe,
    *,
    validation_paths: Sequence[Path],
    sources: tuple[str, ...],
    start_from: str | None,
    licence: str,
    seed: int,
    device: str,
    workers: int,
    resume: bool,
    force: bool,
    progress: Callable[[int], None],
) -> None:
    """Train a classifier of space groups and write it, its temperature fitted on the validation part.

    Parameters
    ----------
    archive_path : Path
        Patterns with their space groups. With templates, synthetic crystals or realism in the
        recipe it names the crystals, and the patterns are made afresh.
    output : Path
        Ends in ``.safetensors``; the checkpoint and the log (JSON lines) stand beside it.
    recipe : Recipe
    validation_paths : sequence of Path
        Archives for temperature and log.
    sources : tuple of str
        Where crystals are found, if they are needed.
    start_from : str or None
        Name or file of a model whose weights to begin with.
    licence : str
        Of the weights, for the metadata.
    seed : int
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    workers : int
        Processes that make patterns.
    resume, force : bool
        Go on from the checkpoint; overwrite an existing output.
    progress : callable
        Told the number of patterns just learnt from.

    Raises
    ------
    UsageError
        An output that is no ``.safetensors``, or no validation archive where one is needed.
    InputError
        An archive that cannot be learnt from, or a validation archive that does not fit it.
    HxrdError
        The output exists.
    """
    checkpoint, log = output.with_suffix(".checkpoint"), output.with_suffix(".log.jsonl")
    _check_output(output, checkpoint, resume, force)
    afresh = any(part is not None for part in (recipe.templates, recipe.synthetic, recipe.realism))
    if afresh and not validation_paths:
        raise UsageError("a recipe that makes patterns afresh needs --validation ARCHIVE")
    classes = SPACE_GROUPS_144 if recipe.groups == 144 else tuple(range(1, 231))
    archive = open_archive(archive_path)
    _even_grid(archive)
    for path in validation_paths:
        _check_alike(open_archive(path), archive)
    trainer = Trainer(recipe, len(classes), seed, _device(device))
    if resume and checkpoint.exists():
        trainer.restore(checkpoint)
        trim_log(log, trainer.epoch)
        logger.info("resuming after epoch %d", trainer.epoch)
    else:
        log.unlink(missing_ok=True)
        checkpoint.unlink(missing_ok=True)  # an older training's: a kill now must not leave it
        if start_from is not None:
            trainer.start_from(_weights_of(start_from, recipe, classes))
    output.parent.mkdir(parents=True, exist_ok=True)
    if afresh:
        share = recipe.synthetic.share if recipe.synthetic is not None else 0.0
        spec = CrystalStreamSpec(
            archive_path, sources, classes, recipe.templates, recipe.realism, seed, share
        )
        stream: ArchiveStream | WorkerStream = WorkerStream(spec, labelled_rows(archive, classes)[1], workers)
        validation = _validation(validation_paths, classes, recipe, sources)
    else:
        stream = ArchiveStream(archive, classes)
        validation = (
            _validation(validation_paths, classes, recipe, sources)
            if validation_paths
            else stream.hold_out(_HELD_OUT, seed)
        )
    if len(validation.labels) < _FEW:
        logger.warning(
            "only %d patterns to validate on: the scores and the temperature will mean little; "
            "give thousands of patterns, or --validation ARCHIVE",
            len(validation.labels),
        )
    progress(trainer.epoch * len(stream.labels))
    try:
        trainer.run(stream, validation, checkpoint, log, progress)
    finally:
        if isinstance(stream, WorkerStream):
            stream.close()
    provenance = {
        "n_patterns": len(stream.labels),
        "validation": [path.name for path in validation_paths],
        "validation_scores": trainer.evaluate(validation),
        "seed": seed,
        "started_from": start_from,
    }
    metadata = _metadata(output.stem, archive, classes, recipe, licence, provenance)
    temperature = fit_temperature(trainer.logits(validation.patterns), validation.labels)
    save_model(output, trainer.average, msgspec.structs.replace(metadata, temperature=temperature))
    logger.info("wrote %s (temperature %.3f)", output, temperature)
    checkpoint.unlink()


def _weights_of(name_or_path: str, recipe: Recipe, classes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    loaded = load_model(name_or_path)
    if loaded.metadata.classes != classes or loaded.metadata.variant != recipe.variant:
        raise UsageError(
            f"--start-from {name_or_path}: its classes or variant are not those that the recipe asks for"
        )
    return loaded.model.state_dict()


def _check_output(output: Path, checkpoint: Path, resume: bool, force: bool) -> None:
    if output.suffix != ".safetensors":
        raise UsageError(f"output {output} must end in .safetensors")
    if output.is_dir():
        raise UsageError(f"output {output} is a folder; give the name of a file")
    if output.exists() and not force:
        raise HxrdError(f"{output} exists; give another name, or --force to overwrite it")
    if checkpoint.exists() and not (resume or force):
        raise HxrdError(
            f"{checkpoint} is left from an interrupted training; --resume goes on, --force restarts"
        )


def _even_grid(archive: Archive) -> tuple[float, float, float]:
    """Start, stop and step in degrees, which a model's file states in place of all its angles."""
    two_theta = archive.two_theta
    if archive.n_points < STEM_KERNEL:
        raise InputError(f"{archive.path}: {archive.n_points} points are too few to learn from")
    step = float(np.round(two_theta[1] - two_theta[0], 9))
    even = two_theta[0] + step * np.arange(archive.n_points)
    if np.abs(two_theta - even).max() > 1e-3 * step:
        raise InputError(f"{archive.path}: its 2θ is not evenly spaced, which a model's grid must be")
    return float(two_theta[0]), float(two_theta[-1]), step


def _check_alike(validation: Archive, archive: Archive) -> None:
    """Refuse validation patterns that the model would not understand."""
    same = (
        validation.probe == archive.probe
        and validation.wavelengths == archive.wavelengths
        and validation.n_points == archive.n_points
        and float(np.abs(validation.two_theta - archive.two_theta).max()) < _SAME_ANGLE
    )
    if not same:
        raise InputError(
            f"validation archive {validation.path} differs from {archive.path} in probe, wavelength or 2θ; "
            "simulate both with the same instrument"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise HxrdError(f"no device {name}: torch sees no CUDA device; use --device cpu")
    if "," in name:
        raise UsageError(f"--device {name}: training runs on one device in this version")
    return torch.device(name)


def _validation(
    paths: Sequence[Path], classes: tuple[int, ...], recipe: Recipe, sources: tuple[str, ...]
) -> Validation:
    """Patterns of the validation archives, made measured-like where the recipe has realism."""
    parts = []
    for path in paths:
        if recipe.realism is None:
            stored = ArchiveStream(open_archive(path), classes)
            parts.append((stored.patterns(0, np.arange(len(stored.labels))), stored.labels))
        else:
            spec = CrystalStreamSpec(path, sources, classes, None, recipe.realism, 0)
            made = CrystalStream(spec)
            parts.append((made.patterns(0, np.arange(len(made.labels))), made.labels))
    return Validation(
        np.concatenate([patterns for patterns, _ in parts]), np.concatenate([labels for _, labels in parts])
    )


def _metadata(
    name: str,
    archive: Archive,
    classes: tuple[int, ...],
    recipe: Recipe,
    licence: str,
    provenance: dict[str, Any],
) -> ModelMetadata:
    return ModelMetadata(
        name=name,
        variant=recipe.variant,
        task="space-group",
        classes=classes,
        grid=_even_grid(archive),
        probe="xray" if archive.probe == "xray" else "neutron",
        wavelength=archive.wavelength,
        preprocessing="background" if recipe.realism is not None else "none",
        input_transform=recipe.input_transform,
        low_confidence=_LOW_CONFIDENCE,
        licence=licence,
        provenance={
            "hxrd": hxrd.__version__,
            "torch": str(torch.__version__),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "archive": archive.path.name,
            "instrument": archive.instrument,
            "recipe": msgspec.to_builtins(recipe),
            **provenance,
        },
    )
