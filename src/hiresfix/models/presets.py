"""Presets of `clarity-upscale`: the recipes of the catalog, and the operator's own in `HIRESFIX_HOME/presets.toml`.

    [portraits]
    like = "clarity"                    # the preset it is based on, one of ours or one above it
    checkpoint = "my-checkpoint"        # a name of `hiresfix models list`, as below
    loras = { more_details = 0.5 }      # always used, with this strength
    offered_loras = ["film-grain"]      # used where a prompt asks for it: <lora:film-grain:0.7>

Guarantees: a preset is a complete recipe, made of known settings with values of their type and range; otherwise a
ConfigurationError says what is wrong. Parameters of callers are not settings here. This module does not read weights:
the worker checks that a model is installed and that a sampler exists.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hiresfix.errors import ConfigurationError
from hiresfix.models.catalog import CatalogModel
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


def find(model: CatalogModel, name: str, home: Path) -> Recipe:
    """Return the preset with this name; "" is the model's own recipe.

    Args:
        model: the model that the preset is for.
        name: name of a preset of the catalog or of the operator's file.
        home: data directory of this installation.

    Raises:
        ConfigurationError: there is no such preset, or the operator's file is invalid.
    """
    if not name:
        return model.preset
    if name in model.presets:
        return model.presets[name]
    presets = dict(model.presets)
    if presets:
        presets |= read_file(home / FILE, model.presets)
    if name not in presets:
        raise ConfigurationError(f"{model.id} has no preset {name!r}. Use one of these: {', '.join(presets) or 'none'}")
    return presets[name]


def read_file(path: Path, shipped: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """Return the presets in a file by name; none if the file does not exist.

    Raises:
        ConfigurationError: the file cannot be read or is invalid.
    """
    if not path.is_file():
        return {}
    presets: dict[str, Recipe] = {}
    try:
        for name, settings in tomllib.loads(path.read_text(encoding="utf-8")).items():
            presets[name] = _preset(name, settings, {**shipped, **presets}, reserved=shipped)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} is invalid: {error}. Correct it; docs/models.md shows how.") from error
    return presets


def _preset(name: str, settings: Any, known: Mapping[str, Recipe], *, reserved: Mapping[str, Recipe]) -> Recipe:
    if not _NAME.fullmatch(name) or name in reserved:
        raise ValueError(f"{name!r} is not a valid preset name, or it is the name of a built-in preset")
    if not isinstance(settings, dict) or settings.get("like") not in known:
        raise ValueError(f'{name} must name the preset it is based on: like = "{list(reserved)[-1]}"')
    if unknown := settings.keys() - {"like", *SETTINGS}:
        raise ValueError(f"{name} has an unknown setting {min(unknown)}; the settings are {', '.join(SETTINGS)}")
    base = known[settings["like"]]
    try:
        return replace(
            base, **{key: _value(key, settings[key], getattr(base, key)) for key in settings if key != "like"}
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _value(key: str, value: Any, example: object) -> Any:
    """Return the value as `Recipe` holds it; `example` is a valid value of the same field."""
    if key == "loras":
        if isinstance(value, dict) and all(type(strength) in (int, float) for strength in value.values()):
            return tuple((name, float(strength)) for name, strength in value.items())
    elif isinstance(example, tuple):
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return tuple(value)
    elif isinstance(example, float) and type(value) is int:
        return float(value)
    elif type(value) is type(example):
        return value
    raise ValueError(f"{key} cannot be {value!r}; write it like this: {SETTINGS[key]}")
