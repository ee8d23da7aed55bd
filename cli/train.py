"""`hxrd train`: a classifier from an archive of simulated patterns."""

import os
from pathlib import Path

import click

from hxrd.cli import options
from hxrd.errors import UsageError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("archive", type=click.Path(exists=True, path_type=Path), metavar="ARCHIVE.zarr")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="MODEL.safetensors",
    help="Model file.",
)
@click.option(
    "--recipe",
    "recipe_path",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    help="How to train: scripts/recipes/ has examples.  [default: the paper's network, 30 epochs]",
)
@click.option(
    "--validation",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="ARCHIVE.zarr",
    help="Patterns kept apart, for log and temperature; repeatable.  [default: 5 % held out]",
)
@click.option("--variant", type=click.Choice(["paper", "released"]), help="Overrides the recipe's.")
@click.option(
    "--groups", type=click.Choice(["144", "230"]), help="Space groups told apart; overrides the recipe's."
)
@click.option("--epochs", type=click.IntRange(min=1), help="Overrides the recipe's.")
@click.option(
    "--start-from", metavar="NAME|FILE", help="Begin with the weights of this model, not at random."
)
@click.option("--licence", default="", help="Of the weights, kept in the model file.")
@options.source_option
@options.seed_option
@options.device_option
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that make patterns.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Processor threads of the network.  [default: all]"
)
@options.resume_option
@options.force_option
@options.logging_options
def train(
    archive: Path,
    output: Path,
    recipe_path: Path | None,
    validation: tuple[Path, ...],
    variant: str | None,
    groups: str | None,
    epochs: int | None,
    start_from: str | None,
    licence: str,
    sources: tuple[str, ...],
    seed: int,
    device: str,
    workers: int,
    threads: int | None,
    resume: bool,
    force: bool,
) -> None:
    """Train a classifier of space groups on the patterns of ARCHIVE.

    A recipe with [templates], [synthetic] or [realism] makes the patterns afresh in each epoch, from the
    crystals that the archive names. After each epoch a checkpoint and a line of the log (JSON) are written
    beside the output; --resume goes on after an interruption.

    \b
    Example:
      hxrd simulate train_ids.txt --source jsonl:crystals.jsonl.gz -o train.zarr
      hxrd train train.zarr -o model.safetensors --epochs 10
    """
    if force and resume:
        raise UsageError("--force starts afresh and --resume goes on: give one of them")
    # Read as torch is imported: its threads are not to spin on cores that the kernels' threads want.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import msgspec
    import torch

    from hxrd.archive.reader import open_archive
    from hxrd.train.config import Recipe, load_recipe
    from hxrd.train.train import train_model

    recipe = load_recipe(recipe_path) if recipe_path else Recipe()
    given = {"variant": variant, "groups": int(groups) if groups else None, "epochs": epochs}
    recipe = msgspec.structs.replace(recipe, **{key: value for key, value in given.items() if value})
    if threads:
        torch.set_num_threads(threads)
    total = recipe.epochs * open_archive(archive).n_patterns
    with options.progress("training", total) as advance:
        train_model(
            archive,
            output,
            recipe,
            validation_paths=validation,
            sources=sources,
            start_from=start_from,
            licence=licence,
            seed=seed,
            device=device,
            workers=workers,
            resume=resume,
            force=force,
            progress=advance,
        )
