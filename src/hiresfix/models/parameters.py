"""Parameters of the models: names, types, bounds, defaults and help.

Validation, JSON Schema, command line help, MCP fields and the pages are made from these or tested against them. Numeric
bounds come from `recipe.RANGES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hiresfix.recipe import RANGES, SCALES, OutputFormat

ParamType = Literal["uri", "string", "integer", "number"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """One parameter of a model, as callers spell it.

    Attributes:
        name: canonical name.
        kind: type of the value.
        help: one sentence for people.
        required: True if there is no default.
        default: used when the parameter is absent; None if absence itself has a meaning.
        minimum: inclusive.
        maximum: inclusive.
        choices: canonical values of an enumeration.
        max_length: in characters.
        aliases: other accepted spellings of the name; camelCase of each is accepted too.
        value_aliases: canonical value by other accepted spelling, in lower case.
        absent: numbers that mean the same as an absent parameter.
        common: taken from the top level of the request where the params object lacks it.
    """

    name: str
    kind: ParamType
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


RECIPE_FIELDS = {"scale_factor": "scale", "num_inference_steps": "steps"}
"""Field of `Recipe` by parameter, where the names differ."""


NETWORK_FOR_CONTENT = {"photo": "realsr-df2k", "anime": "realesrgan-x4plus-anime"}


IMAGE = Param(
    name="image",
    kind="uri",
    required=True,
    aliases=("image_url",),
    help="Source image: an http(s) URL or a base64 data URI.",
)


SCALE = Param(
    name="scale_factor",
    kind="integer",
    default=2,
    choices=SCALES,
    aliases=("upscale_factor",),
    value_aliases={f"{scale}x": str(scale) for scale in SCALES},
    help="Scale factor for width and height.",
)


SHARPEN = Param(
    name="sharpen",
    kind="number",
    default=0,
    minimum=RANGES["sharpen"].low,
    maximum=RANGES["sharpen"].high,
    help="Sharpening after the last pass; 0 turns it off.",
)


FORMAT = Param(
    name="output_format",
    kind="string",
    default="png",
    choices=tuple(OutputFormat),
    value_aliases={"jpeg": "jpg"},
    help="File format of the result. jpg and webp are saved at quality 95.",
)


SEED = Param(
    name="seed",
    kind="integer",
    minimum=RANGES["seed"].low,
    maximum=RANGES["seed"].high,
    absent=(-1,),
    help="Reuse a number to reproduce an image. Leave it out, or use -1, for a random seed.",
)


DEFAULT_PROMPT = "masterpiece, best quality, highres"


DEFAULT_NEGATIVE_PROMPT = "(worst quality, low quality, normal quality:2)"


PROMPT = Param(
    name="prompt",
    kind="string",
    default=DEFAULT_PROMPT,
    max_length=2000,
    common=True,
    help="The kind of detail to add. Diffusion models follow it; the offline engine ignores it.",
)
NEGATIVE_PROMPT = Param(
    name="negative_prompt",
    kind="string",
    default=DEFAULT_NEGATIVE_PROMPT,
    max_length=2000,
    common=True,
    help="What to avoid. Only diffusion models follow it.",
)


CREATIVITY = Param(
    name="creativity",
    kind="number",
    default=0.35,
    minimum=RANGES["creativity"].low,
    maximum=RANGES["creativity"].high,
    help="How much new detail to invent in textured areas: 0 none, 0.35 natural, 1 bold.",
)


RESEMBLANCE = Param(
    name="resemblance",
    kind="number",
    default=0.6,
    minimum=RANGES["resemblance"].low,
    maximum=RANGES["resemblance"].high,
    help="How closely the result, scaled back down, matches the input: 0 loosely, 3 exactly.",
)


DYNAMIC = Param(
    name="dynamic",
    kind="number",
    default=6,
    minimum=RANGES["dynamic"].low,
    maximum=RANGES["dynamic"].high,
    help="How much detail is kept or emphasised: 1 soft, 6 neutral, 50 crisp with high contrast.",
)


STEPS = Param(
    name="num_inference_steps",
    kind="integer",
    default=18,
    minimum=RANGES["steps"].low,
    maximum=RANGES["steps"].high,
    help="Refinement steps. Offline: one network run per pass, two from 30 steps, three from 60.",
)


CONTENT = Param(
    name="content",
    kind="string",
    default="photo",
    choices=tuple(NETWORK_FOR_CONTENT),
    help="Type of image. It selects the network.",
)
