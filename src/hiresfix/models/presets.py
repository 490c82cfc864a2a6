"""What `clarity-upscale` can run: the catalog's recipes, and the operator's own in `HIRESFIX_HOME/presets.toml`.

    [portraits]
    like = "clarity"                    # what it has in common with another preset, of ours or above it
    checkpoint = "my-checkpoint"        # a name of `hiresfix models list`; so are those below
    loras = { more_details = 0.5 }      # always, and how much
    offered_loras = ["film-grain"]      # where a prompt says so: <lora:film-grain:0.7>

Guarantees: a preset is a complete recipe of settings that there are, with values of their kind and range, or a
ConfigurationError says what is wrong with it. What callers may say themselves is no setting here. Knows no weights:
whether a name is installed, and what a sampler is called, is seen by whoever runs it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hiresfix.errors import ConfigurationError
from hiresfix.models.catalog import Model
from hiresfix.recipe import Recipe

FILE = "presets.toml"
SETTINGS = {
    "enlarger": 'enlarger = "realsr-df2k"',
    "tile": "tile = 256",
    "checkpoint": 'checkpoint = "my-checkpoint"',
    "vae": 'vae = "vae-ft-mse"',
    "controlnet": 'controlnet = "control-tile"',
    "loras": "loras = { more_details = 0.5 }",
    "offered_loras": 'offered_loras = ["more_details"]',
    "embeddings": 'embeddings = ["JuggernautNegative-neg"]',
    "sampler": 'sampler = "dpmpp-3m-sde-karras"',
    "classic": "classic = false",
    "tile_height": "tile_height = 144",
    "tile_width": "tile_width = 112",
    "colour_lock": "colour_lock = 1.0",
    "least_drift_db": "least_drift_db = 12.0",
}
"""Fields of `Recipe` that a preset may set, each with an example."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def find(model: Model, name: str, home: Path) -> Recipe:
    """The preset of this name, where `home` is the installation's data; "" is the model's own recipe.

    Raises ConfigurationError if there is none, or the operator's file is wrong.
    """
    if not name:
        return model.preset
    if name in model.presets:
        return model.presets[name]
    offered = dict(model.presets)
    if offered:
        offered |= own(home / FILE, model.presets)
    if name not in offered:
        raise ConfigurationError(f"{model.id} has no preset {name!r}; it has these: {', '.join(offered) or 'none'}")
    return offered[name]


def own(path: Path, shipped: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """The presets in a file, by name; none if there is no file. Raises ConfigurationError if it is wrong."""
    if not path.is_file():
        return {}
    made: dict[str, Recipe] = {}
    try:
        for name, settings in tomllib.loads(path.read_text(encoding="utf-8")).items():
            made[name] = _preset(name, settings, {**shipped, **made}, taken=shipped)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} is wrong: {error}. Correct it; docs/models.md shows how.") from error
    return made


def _preset(name: str, settings: Any, known: Mapping[str, Recipe], *, taken: Mapping[str, Recipe]) -> Recipe:
    if not _NAME.fullmatch(name) or name in taken:
        raise ValueError(f"{name!r} cannot be a preset's name, or is one of ours")
    if not isinstance(settings, dict) or settings.get("like") not in known:
        raise ValueError(f'{name} must say what it is like: like = "{list(taken)[-1]}"')
    if unknown := settings.keys() - {"like", *SETTINGS}:
        raise ValueError(f"{name} has {min(unknown)}, which is no setting; those are {', '.join(SETTINGS)}")
    like = known[settings["like"]]
    try:
        return replace(
            like, **{key: _value(key, settings[key], getattr(like, key)) for key in settings if key != "like"}
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _value(key: str, value: Any, like: object) -> Any:
    """As the recipe holds it; `like` is what another recipe has there."""
    if key == "loras":
        if isinstance(value, dict) and all(type(strength) in (int, float) for strength in value.values()):
            return tuple((name, float(strength)) for name, strength in value.items())
    elif isinstance(like, tuple):
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return tuple(value)
    elif isinstance(like, float) and type(value) is int:
        return float(value)
    elif type(value) is type(like):
        return value
    raise ValueError(f"{key} cannot be {value!r}; write it as in {SETTINGS[key]}")
