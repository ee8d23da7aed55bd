"""Recipes: those of the checkout work, and those that cannot are told by file and field."""

from pathlib import Path

import pytest
from training_archives import recipe_file

from hxrd.errors import InputError, UsageError
from hxrd.train.config import load_recipe


def test_the_recipes_of_the_checkout_are_valid() -> None:
    recipes = Path(__file__).parent.parent / "scripts" / "recipes"
    loaded = {path.stem: load_recipe(path) for path in recipes.glob("*.toml")}
    assert {"neutron", "neutron-clean"} <= set(loaded)
    assert loaded["neutron"].realism is not None
    assert loaded["neutron-clean"].realism is None
    assert loaded["neutron-clean"].templates is not None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epoch = 3", "epoch"),
        ("epochs = 0", "epochs"),
        ("epochs = 1.5", "epochs"),
        ("batch_size = 1", "batch_size"),
        ('variant = "mine"', "variant"),
        ("groups = 100", "groups"),
        ("learning_rate = 0.0", "learning_rate"),
        ("warm_up = 1.0", "warm_up"),
        ("dropout = 1.0", "dropout"),
        ("label_smoothing = -0.1", "label_smoothing"),
        ("average_decay = 1.0", "average_decay"),
        ("weight_decay = -1.0", "weight_decay"),
        ("clip_norm = 0.0", "clip_norm"),
        ("clip_norm = nan", "clip_norm"),
        ('input_transform = "log"', "input_transform"),
        ("[templates]\nstrain = 1.0", "strain"),
        ("[templates]\nexchange_probability = 2.0", "exchange_probability"),
        ("[synthetic]\nshare = 0.0", "share"),
        ("[synthetic]\nshare = 1.1", "share"),
        ("[synthetic]\npart = 0.5", "part"),
        ("[realism]\ngroup_size = 0", "group_size"),
        ("[realism]\nwavelength = [2.0]", "wavelength"),
        ("[realism]\nstart = [20.0, 2.0]", "start"),
        ("epochs 3", "recipe.toml"),
    ],
)
def test_a_recipe_that_cannot_work_is_told_by_file_and_field(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        load_recipe(recipe_file(tmp_path, text))
    assert "recipe.toml" in str(caught.value)


def test_a_recipe_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_recipe(tmp_path / "absent.toml")
