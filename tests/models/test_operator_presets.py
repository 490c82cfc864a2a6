"""The operator's own recipes for `clarity-upscale`: how they are written, chosen and refused."""

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


def test_a_preset_is_another_one_with_what_it_says_itself(home: Path) -> None:
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


def test_without_a_file_there_are_the_presets_of_the_catalog(tmp_path: Path) -> None:
    assert presets.find(CLARITY, "", tmp_path) == CLARITY.preset
    assert presets.find(FAITHFUL, "", tmp_path) == FAITHFUL.preset
    assert {name: presets.find(CLARITY, name, tmp_path) for name in CLARITY.presets} == dict(CLARITY.presets)


def test_every_setting_can_be_written_as_its_example_says(tmp_path: Path) -> None:
    (tmp_path / presets.FILE).write_text('[all]\nlike = "offline"\n' + "\n".join(presets.SETTINGS.values()))
    made = presets.find(CLARITY, "all", tmp_path)
    assert made.engine is Engine.GAN_PRIOR
    assert (made.loras, made.tile_height, made.checkpoint) == ((("more_details", 0.5),), 144, "my-checkpoint")


def test_no_setting_is_one_that_callers_decide() -> None:
    callers = {"scale", "steps", *(param.name for param in CLARITY.params)}
    assert callers.isdisjoint(presets.SETTINGS)


def test_it_is_chosen_by_the_library_and_by_the_servers_setting(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = local.recipe_of(CLARITY, {"creativity": "0.8"}, preset="film")
    assert (asked.checkpoint, asked.creativity) == ("mine", 0.8)
    monkeypatch.setenv("HIRESFIX_CLARITY_PRESET", "film")
    settings = load_settings()
    assert settings.preset(CLARITY) == presets.find(CLARITY, "film", home)
    assert settings.preset(FAITHFUL) == FAITHFUL.preset


def test_a_name_that_is_not_there_is_told_with_those_that_are(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest) as caught:
        local.recipe_of(CLARITY, {}, preset="flim")
    assert "offline, clarity, clarity-classic, film, film-classic" in caught.value.details["preset"][0]
    monkeypatch.setenv("HIRESFIX_CLARITY_PRESET", "flim")
    with pytest.raises(ConfigurationError, match=r"HIRESFIX_CLARITY_PRESET.*film-classic"):
        load_settings()
    with pytest.raises(ConfigurationError, match="faithful-upscale has no preset 'film'"):
        presets.find(FAITHFUL, "film", home)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[clarity]\nlike = 'clarity'", "one of ours"),
        ("['../x']\nlike = 'clarity'", "cannot be a preset's name"),
        ("like = 'clarity'", "must say what it is like"),
        ("[a]\ncheckpoint = 'mine'", 'like = "clarity-classic"'),
        ("[a]\nlike = 'b'\n[b]\nlike = 'clarity'", "a must say what it is like"),
        ("[a]\nlike = 'clarity'\ncheckpont = 'mine'", "checkpont, which is no setting"),
        ("[a]\nlike = 'clarity'\nprompt = 'mine'", "prompt, which is no setting"),
        ("[a]\nlike = 'clarity'\ncheckpoint = 3", 'checkpoint = "my-checkpoint"'),
        ("[a]\nlike = 'clarity'\nclassic = 1", "classic = false"),
        ("[a]\nlike = 'clarity'\ntile = 12.5", "tile = 256"),
        ("[a]\nlike = 'clarity'\ntile = true", "tile = 256"),
        ("[a]\nlike = 'clarity'\ntile_width = 9", "tile_width must lie in 16..1024"),
        ("[a]\nlike = 'clarity'\nloras = ['x']", "loras = { more_details = 0.5 }"),
        ("[a]\nlike = 'clarity'\nloras = { x = true }", "loras = { more_details = 0.5 }"),
        ("[a]\nlike = 'clarity'\noffered_loras = 'x'", 'offered_loras = ["more_details"]'),
        ("[a]\nlike = 'clarity'\ncolour_lock = nan", "colour_lock must lie in 0..1"),
        ("[a", "wrong"),
    ],
)
def test_what_is_wrong_with_the_file_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / presets.FILE).write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        presets.find(CLARITY, "a", tmp_path)
    assert told in caught.value.message
    assert presets.FILE in caught.value.message
    assert presets.find(CLARITY, "offline", tmp_path) == CLARITY.presets["offline"]  # of no concern to who uses none
