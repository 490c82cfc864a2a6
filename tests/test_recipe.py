"""Recipes are complete, bounded, and survive JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiresfix.errors import NotUnderstood
from hiresfix.models.catalog import CLARITY, FAITHFUL, MODELS, WEIGHTS, find_model, find_weights
from hiresfix.recipe import AUTO, MAX_SEED, SCALES, Engine, OutputFormat, Recipe

recipes = st.builds(
    Recipe,
    engine=st.sampled_from(Engine),
    scale=st.sampled_from(SCALES),
    creativity=st.floats(0, 1),
    resemblance=st.floats(0, 3),
    dynamic=st.floats(1, 50),
    steps=st.integers(1, 100),
    sharpen=st.floats(0, 10),
    prompt=st.text(),
    seed=st.integers(0, MAX_SEED),
    output_format=st.sampled_from(OutputFormat),
)


@given(recipes)
def test_recipe_survives_json(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    "change",
    [{"scale": 3}, {"creativity": 1.01}, {"resemblance": -0.1}, {"dynamic": 0}, {"steps": 0}, {"sharpen": math.nan},
     {"seed": -1}, {"seed": MAX_SEED + 1}, {"dynamic": math.inf}],
)  # fmt: skip
def test_value_out_of_range_is_named(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Recipe(**change)


def test_unknown_key_is_rejected() -> None:
    with pytest.raises(NotUnderstood, match="newer release"):
        Recipe.from_dict({"scale": 2, "from_the_future": 1})


def test_seed_zero_is_a_seed() -> None:
    assert CLARITY.recipe({"seed": 0}, seed=99).seed == 0
    assert CLARITY.recipe({}, seed=99).seed == 99


def test_caller_parameters_override_operator_preset() -> None:
    recipe = CLARITY.recipe({"creativity": 0.8}, seed=1, preset=CLARITY.presets["clarity"])
    assert (recipe.engine, recipe.creativity, recipe.checkpoint) == (Engine.DIFFUSION, 0.8, "juggernaut-reborn")
    assert CLARITY.recipe({}, seed=1, preset=CLARITY.presets["offline"]) == CLARITY.recipe({}, seed=1)
    for preset in CLARITY.presets.values():
        assert Recipe.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset


def test_content_chooses_the_network() -> None:
    assert FAITHFUL.recipe({"content": "photo"}, seed=1).enlarger == "realsr-df2k"
    assert FAITHFUL.recipe({"content": "anime"}, seed=1).enlarger == "realesrgan-x4plus-anime"


def test_find_model_by_id_and_alias_ignores_case() -> None:
    assert find_model("Clarity-Upscaler") is CLARITY
    assert find_model("topaz-image-upscale") is None
    assert all(model.preset.enlarger == AUTO or find_weights(model.preset.enlarger) for model in MODELS)
    assert len({weights.name for weights in WEIGHTS}) == len(WEIGHTS)


def test_parameter_defaults_match_the_preset() -> None:
    """The engine gets the preset; callers are told the defaults of the parameters."""
    for model in MODELS:
        defaults = {param.name: param.default for param in model.params if param.default is not None}
        assert model.recipe(defaults, seed=0) == model.recipe({}, seed=0)
