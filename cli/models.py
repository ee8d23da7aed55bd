"""`hxrd models`: bundled and local models, the import of released checkpoints, and export."""

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from hxrd.cli.options import force_option, logging_options
from hxrd.errors import UsageError

if TYPE_CHECKING:
    from hxrd.models.registry import ModelEntry, ModelMetadata
    from hxrd.models.resnet1d import ResNet1D

logger = logging.getLogger("hxrd")

HELP = {"help_option_names": ["-h", "--help"]}
DEFAULT_EXPORT = "neutron"
HEADINGS = ("name", "origin", "classes", "probe", "wavelength", "2θ grid", "licence")


@click.group(context_settings=HELP)
def models() -> None:
    """List bundled and local models; import released ones; export them for other programs.

    Wavelengths are in Å, 2θ in degrees.

    \b
    Example:
      hxrd models list
    """


@models.command("list", context_settings=HELP)
@logging_options
def list_command() -> None:
    """List the models that `--model NAME` knows.

    Wavelengths are in Å, 2θ (start, stop, step) in degrees.

    \b
    Example:
      hxrd models list
    """
    from hxrd.models.registry import list_models, local_folder

    entries = list_models()
    rows = [HEADINGS, *(_described(entry) for entry in entries if entry.metadata is not None)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    for entry in entries:
        if entry.metadata is None:
            logger.warning("%s", entry.problem)
    logger.info("local models lie in %s", local_folder())


def _described(entry: "ModelEntry") -> tuple[str, ...]:
    metadata = entry.metadata
    assert metadata is not None
    kind = "Bravais lattices" if metadata.task == "bravais" else "space groups"
    start, stop, step = metadata.grid
    return (
        entry.name,
        entry.origin,
        f"{metadata.n_classes} {kind}",
        metadata.probe,
        f"{metadata.wavelength:.6g}",
        f"{start:g} {stop:g} {step:g}",
        metadata.licence,
    )


@models.command("import", context_settings=HELP)
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="FILE.pth")
@click.option("--name", metavar="NAME", help="Of the model.  [default: the file's own name in lower case]")
@click.option(
    "--which",
    type=click.Choice(["sgan", "supervised"]),
    help="Which of the two networks of a released file.  [default: both, NAME-sgan and NAME-supervised]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A .safetensors file to write.  [default: among the local models]",
)
@force_option
@logging_options
def import_command(
    checkpoint: Path,
    name: str | None,
    which: Literal["sgan", "supervised"] | None,
    output: Path | None,
    force: bool,
) -> None:
    """Import a checkpoint released with Lolla et al. (2022).

    FILE.pth holds state dicts under the keys SGAN and Supervised, or is a bare state dict. No code in it is
    ever run. Patterns for the imported model: neutrons, 2.0775 Å, 2θ 3 to 155 by 0.05 degrees.

    \b
    Example:
      hxrd models import SpaceGroupModels.pth --name released
    """
    from hxrd.models.registry import local_folder, save_model
    from hxrd.models.seed_checkpoint import import_seed_checkpoint

    if name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UsageError(f"--name {name!r}: letters, digits, '-', '_' and '.' only")
    if output is not None and output.suffix != ".safetensors":
        raise UsageError(f"-o {output}: the suffix must be .safetensors")
    imported = import_seed_checkpoint(checkpoint, name=name, which=which)
    if output is not None and len(imported) > 1:
        raise UsageError(f"{checkpoint} holds two models for one -o; give --which sgan or --which supervised")
    targets = [output or local_folder() / f"{metadata.name}.safetensors" for _, metadata in imported]
    _check_targets(targets, imported, force, among_local=output is None)
    for target, (model, metadata) in zip(targets, imported, strict=True):
        save_model(target, model, metadata, force=force)
        logger.info("%s written (%d classes)", target, metadata.n_classes)
        click.echo(metadata.name if output is None else str(target))


def _check_targets(
    targets: list[Path], imported: "list[tuple[ResNet1D, ModelMetadata]]", force: bool, among_local: bool
) -> None:
    """Refuse before anything is written."""
    from hxrd.errors import HxrdError
    from hxrd.models.registry import BUNDLED_FOLDER

    for target, (_, metadata) in zip(targets, imported, strict=True):
        if among_local and (BUNDLED_FOLDER / target.name).exists():
            raise UsageError(f"{metadata.name} is the name of a bundled model; give another --name")
        if target.exists() and not force:
            raise HxrdError(f"{target} exists; give --force to overwrite it, or another --name")


@models.command("export", context_settings=HELP)
@click.option(
    "--format", "kind", type=click.Choice(["onnx"]), required=True, help="What to write: one ONNX file."
)
@click.option(
    "--model",
    default=DEFAULT_EXPORT,
    show_default=True,
    metavar="NAME|FILE",
    help="`hxrd models list` names them.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to write.  [default: the model's name with .onnx, in this folder]",
)
@force_option
@logging_options
def export_command(kind: str, model: str, output: Path | None, force: bool) -> None:
    """Write a model for other programs.

    ONNX: input "patterns" (batch, 1, n_points), float32, any batch; output "logits" (batch, n_classes).
    The input is what the network itself sees: intensities on the model's 2θ grid (degrees) and wavelength
    (Å), the background removed where the model asks for it, divided by the maximum, then the model's
    transform and offset. Classes, their order and the temperature stand in the metadata entry "hxrd".

    \b
    Example:
      hxrd models export --format onnx --model neutron -o neutron.onnx
    """
    from hxrd.models.onnx_export import export_onnx
    from hxrd.models.registry import load_model

    suffix = f".{kind}"
    if output is not None and output.suffix != suffix:
        raise UsageError(f"-o {output}: the suffix must be {suffix}")
    loaded = load_model(model)
    target = output or Path(f"{loaded.metadata.name}{suffix}")
    export_onnx(loaded, target, force=force)
    logger.info("%s written (%d classes)", target, loaded.metadata.n_classes)
    click.echo(str(target))
