"""Bounds and defaults of parameters agree wherever they are stated."""

from __future__ import annotations

import pytest

from hiresfix.models.catalog import MODELS, CatalogModel
from hiresfix.models.parameters import RECIPE_FIELDS, Param
from hiresfix.recipe import RANGES, SCALES, OutputFormat, Recipe

BOUNDED = [
    pytest.param(model, param, id=f"{model.id}-{param.name}")
    for model in MODELS
    for param in model.params
    if param.kind in ("integer", "number") and not param.choices
]


def field_of(param: Param) -> str:
    return RECIPE_FIELDS.get(param.name, param.name)


@pytest.mark.parametrize(("model", "param"), BOUNDED)
def test_parameter_and_recipe_share_bounds(model: CatalogModel, param: Param) -> None:
    assert (param.minimum, param.maximum) == RANGES[field_of(param)]


@pytest.mark.parametrize(("model", "param"), BOUNDED)
def test_recipe_accepts_bounds_and_rejects_values_beyond(model: CatalogModel, param: Param) -> None:
    assert param.minimum is not None
    assert param.maximum is not None
    for value in (param.minimum, param.maximum):
        recipe = model.recipe({param.name: value}, seed=0)
        assert getattr(recipe, field_of(param)) == value
    for value in (param.minimum - 1, param.maximum + 1):
        with pytest.raises(ValueError, match=field_of(param)):
            model.recipe({param.name: value}, seed=0)


def test_every_bounded_recipe_field_is_numeric() -> None:
    defaults = {name: getattr(Recipe(), name) for name in RANGES}
    assert all(type(value) in (int, float) for value in defaults.values())
    assert {name for name in Recipe.__slots__ if type(getattr(Recipe(), name)) in (int, float)} == {*RANGES, "scale"}


def test_choices_of_parameters_are_those_of_the_recipe() -> None:
    for model in MODELS:
        assert model.param("scale_factor").choices == SCALES
        assert model.param("output_format").choices == tuple(OutputFormat)
