"""Parameter presets for callers: valid requests, without redundant values."""

from __future__ import annotations

import json

import pytest

from hiresfix import wire
from hiresfix.models.catalog import MODELS, CatalogModel, ParamPreset

ALL = [(model, preset) for model in MODELS for preset in model.param_presets]


@pytest.mark.parametrize(("model", "preset"), ALL, ids=lambda value: value.id)
def test_param_preset_is_a_valid_canonical_request(model: CatalogModel, preset: ParamPreset) -> None:
    params = {"image": "https://example.com/a.png", **preset.values}
    body = json.dumps({"model": model.id, model.params_key: params}).encode()
    parsed = wire.parse_upscale(body, "application/json")
    assert {name: parsed.values[name] for name in preset.values} == dict(preset.values)


@pytest.mark.parametrize(("model", "preset"), ALL, ids=lambda value: value.id)
def test_param_preset_repeats_no_default(model: CatalogModel, preset: ParamPreset) -> None:
    assert {name for name, value in preset.values.items() if value == model.param(name).default} == set()


def test_common_subjects_have_unique_presets() -> None:
    ids = [preset.id for _, preset in ALL]
    assert len(ids) == len(set(ids))
    expected = {"portrait", "landscape", "illustration", "product", "game", "old-photo", "texture", "text", "faithful"}
    assert expected <= set(ids)


def test_first_param_preset_is_the_defaults() -> None:
    assert [dict(model.param_presets[0].values) for model in MODELS] == [{}, {}]
