"""Presets of the operator for `clarity-upscale`: writing, choosing and rejecting them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hiresfix import local
from hiresfix.errors import ConfigurationError, InvalidRequest
from hiresfix.models import presets
from hiresfix.models.catalog import CLARITY, FAITHFUL
from hiresfix.recipe import Engine, Recipe
from hiresfix.server.settings import load_settings

FILM = """
[film]
like = "clarity"
checkpoint = "mine"
vae = ""
loras = { grain = 1, more_details = 0.5 }
offered_loras = ["leaves"]
embeddings = []
sampler = "euler"
tile_width = 96
colour_lock = 0

[film-classic]
like = "film"
classic = true
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HIRESFIX_HOME", str(tmp_path))
    (tmp_path / presets.FILE).write_text(FILM)
    return tmp_path


def test_preset_overrides_its_base(home: Path) -> None:
    film = presets.find(CLARITY, "film", home)
    assert film == replace(
        CLARITY.presets["clarity"],
        checkpoint="mine",
        vae="",
        loras=(("grain", 1.0), ("more_details", 0.5)),
        offered_loras=("leaves",),
        sampler="euler",
        tile_width=96,
        colour_lock=0.0,
    )
    assert presets.find(CLARITY, "film-classic", home) == replace(film, classic=True)
    assert Recipe.from_dict(json.loads(json.dumps(film.to_dict()))) == film


def test_without_file_only_catalog_presets_exist(tmp_path: Path) -> None:
    assert presets.find(CLARITY, "", tmp_path) == CLARITY.preset
    assert presets.find(FAITHFUL, "", tmp_path) == FAITHFUL.preset
    assert {name: presets.find(CLARITY, name, tmp_path) for name in CLARITY.presets} == dict(CLARITY.presets)


def test_every_example_setting_is_valid(tmp_path: Path) -> None:
    (tmp_path / presets.FILE).write_text('[all]\nlike = "offline"\n' + "\n".join(presets.SETTINGS.values()))
    preset = presets.find(CLARITY, "all", tmp_path)
    assert preset.engine is Engine.OFFLINE
    assert (preset.loras, preset.tile_height, preset.checkpoint) == ((("more_details", 0.5),), 144, "my-checkpoint")


def test_presets_set_no_caller_parameters() -> None:
    callers = {"scale", "steps", *(param.name for param in CLARITY.params)}
    assert callers.isdisjoint(presets.SETTINGS)


def test_library_and_server_setting_choose_preset(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = local.build_recipe(CLARITY, {"creativity": "0.8"}, preset="film")
    assert (recipe.checkpoint, recipe.creativity) == ("mine", 0.8)
    monkeypatch.setenv("HIRESFIX_CLARITY_PRESET", "film")
    settings = load_settings()
    assert settings.preset(CLARITY) == presets.find(CLARITY, "film", home)
    assert settings.preset(FAITHFUL) == FAITHFUL.preset


def test_unknown_preset_lists_known_ones(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest) as caught:
        local.build_recipe(CLARITY, {}, preset="flim")
    assert "offline, clarity, clarity-classic, film, film-classic" in caught.value.details["preset"][0]
    monkeypatch.setenv("HIRESFIX_CLARITY_PRESET", "flim")
    with pytest.raises(ConfigurationError, match=r"HIRESFIX_CLARITY_PRESET.*film-classic"):
        load_settings()
    with pytest.raises(ConfigurationError, match="faithful-upscale has no preset 'film'"):
        presets.find(FAITHFUL, "film", home)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[clarity]\nlike = 'clarity'", "is the name of a built-in preset"),
        ("['../x']\nlike = 'clarity'", "is not a valid preset name"),
        ("like = 'clarity'", "must name the preset it is based on"),
        ("[a]\ncheckpoint = 'mine'", 'like = "clarity-classic"'),
        ("[a]\nlike = 'b'\n[b]\nlike = 'clarity'", "a must name the preset it is based on"),
        ("[a]\nlike = 'clarity'\ncheckpont = 'mine'", "a has an unknown setting checkpont"),
        ("[a]\nlike = 'clarity'\nprompt = 'mine'", "a has an unknown setting prompt"),
        ("[a]\nlike = 'clarity'\ncheckpoint = 3", 'checkpoint = "my-checkpoint"'),
        ("[a]\nlike = 'clarity'\nclassic = 1", "classic = false"),
        ("[a]\nlike = 'clarity'\ntile = 12.5", "tile = 256"),
        ("[a]\nlike = 'clarity'\ntile = true", "tile = 256"),
        ("[a]\nlike = 'clarity'\ntile_width = 9", "tile_width must lie in 16..1024"),
        ("[a]\nlike = 'clarity'\nloras = ['x']", "loras = { more_details = 0.5 }"),
        ("[a]\nlike = 'clarity'\nloras = { x = true }", "loras = { more_details = 0.5 }"),
        ("[a]\nlike = 'clarity'\noffered_loras = 'x'", 'offered_loras = ["more_details"]'),
        ("[a]\nlike = 'clarity'\ncolour_lock = nan", "colour_lock must lie in 0..1"),
        ("[a", "invalid"),
    ],
)
def test_invalid_file_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / presets.FILE).write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        presets.find(CLARITY, "a", tmp_path)
    assert message in caught.value.message
    assert presets.FILE in caught.value.message
    assert (
        presets.find(CLARITY, "offline", tmp_path) == CLARITY.presets["offline"]
    )  # built-in presets do not need the file
