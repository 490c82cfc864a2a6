"""Presets by subject: what they begin with is what a request may say, and nothing else."""

from __future__ import annotations

import json

import pytest

from hiresfix import wire
from hiresfix.models.catalog import MODELS, Model, Subject

ALL = [(model, subject) for model in MODELS for subject in model.subjects]


@pytest.mark.parametrize(("model", "subject"), ALL, ids=lambda value: value.id)
def test_a_preset_is_a_valid_request_in_its_canonical_form(model: Model, subject: Subject) -> None:
    params = {"image": "https://example.com/a.png", **subject.values}
    body = json.dumps({"model": model.id, model.params_key: params}).encode()
    parsed = wire.parse_upscale(body, "application/json")
    assert {name: parsed.values[name] for name in subject.values} == dict(subject.values)


@pytest.mark.parametrize(("model", "subject"), ALL, ids=lambda value: value.id)
def test_a_preset_repeats_no_default(model: Model, subject: Subject) -> None:
    assert {name for name, value in subject.values.items() if value == model.param(name).default} == set()


def test_every_subject_that_people_look_for_has_a_preset_and_ids_are_unique() -> None:
    ids = [subject.id for _, subject in ALL]
    assert len(ids) == len(set(ids))
    wanted = {"portrait", "landscape", "illustration", "product", "game", "old-photo", "texture", "text", "faithful"}
    assert wanted <= set(ids)


def test_the_first_preset_of_a_model_is_the_models_defaults() -> None:
    assert [dict(model.subjects[0].values) for model in MODELS] == [{}, {}]
