"""Enlarging on this machine, without a server: `hiresfix.upscale`.

    result = hiresfix.upscale("in.jpg", scale=2, creativity=0.35)
    result.save("out.png")

The engine is loaded by the first call and stays warm for the next ones. Parameters, bounds and messages are the API's.
"""

from __future__ import annotations

import difflib
import io
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from hiresfix.client import inputs
from hiresfix.client.inputs import Image
from hiresfix.client.values import Params, spelled_out
from hiresfix.errors import ConfigurationError, InvalidRequest
from hiresfix.files import FORMAT_OF_SUFFIX, PartFile
from hiresfix.models import presets
from hiresfix.models.catalog import MODELS, Model, find_model
from hiresfix.paths import home
from hiresfix.recipe import MAX_SEED, OutputFormat, Recipe
from hiresfix.wire.params import canonical
from hiresfix.wire.problems import Problems

if TYPE_CHECKING:
    from PIL import Image as PillowModule

    from hiresfix.engine.upscaler import Upscaler
    from hiresfix.images import DecodedImage, Encoded, Limits

_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Upscaled:
    """An enlarged picture, and how it was made.

    picture: its pixels with what travels with them; recipe: every knob, the seed included; metadata: what the engine
    says of its work. Saving keeps depth, transparency and profile as far as the format can hold them.
    """

    picture: DecodedImage = field(repr=False)
    recipe: Recipe
    metadata: Mapping[str, Any] = field(repr=False)
    keep_metadata: bool = True

    @property
    def seed(self) -> int:
        """Reuse it to make the same picture again."""
        return self.recipe.seed

    @property
    def width(self) -> int:
        return self.picture.width

    @property
    def height(self) -> int:
        return self.picture.height

    @property
    def image(self) -> PillowModule.Image:
        """The picture as a Pillow image, made now: 8 bits a channel, its profile in `info`."""
        from PIL import Image as pillow  # noqa: N813  # `Image` is what a caller may pass

        with pillow.open(io.BytesIO(self.encode(OutputFormat.PNG).data)) as found:
            found.load()
            return found

    def encode(self, output_format: str | None = None) -> Encoded:
        """The bytes of a file: png, jpg or webp, by default what was asked of `upscale`. Raises PictureError."""
        from hiresfix import images

        wanted = OutputFormat(output_format or self.recipe.output_format)
        return images.encode(self.picture, wanted, keep_metadata=self.keep_metadata)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a file whose suffix says the format, whole or not at all; returns its path.

        Raises ValueError for a suffix that cannot be written, PictureError for a picture the format cannot hold.
        """
        target = Path(path)
        if target.suffix.lower() not in FORMAT_OF_SUFFIX:
            raise ValueError(f"Cannot write {target.suffix or 'a file without a suffix'}; use .png, .jpg or .webp.")
        encoded = self.encode(FORMAT_OF_SUFFIX[target.suffix.lower()])
        with PartFile(target) as part:
            part.write(encoded.data)
            part.finish()
        return target


def upscale(
    image: Image,
    *,
    model: str = MODELS[0].id,
    preset: str = "",
    device: str = "auto",
    keep_metadata: bool = True,
    limits: Limits | None = None,
    on_progress: Callable[[float], object] | None = None,
    **params: Unpack[Params],
) -> Upscaled:
    """Enlarge a picture here and now: a path, bytes, an open file, a PIL.Image or an array.

    params: scale 1, 2, 4, 8; creativity 0 to 1; resemblance 0 to 3; dynamic 1 to 50; steps 1 to 100; sharpen 0 to 10;
    prompt, negative_prompt, seed; output_format png, jpg, webp; content photo, anime (model="faithful-upscale").
    preset: of `clarity-upscale`: offline, clarity, clarity-classic or one of your own (`hiresfix.models.presets`).
    device: auto, cpu, cuda, cuda:1, mps. keep_metadata False leaves EXIF and XMP out. limits: by default those of a
    server. `on_progress` hears of fractions from 0 to 1, and stops the engine by raising `hiresfix.errors.Cancelled`.
    May be called from any thread; one works at a time. Raises InvalidRequest, PictureError, WeightsError, EngineFailed;
    ModuleNotFoundError without the extra `engine`.
    """
    recipe = recipe_of(model_called(model), spelled_out(params), preset=preset)
    if inputs.url_of(image) is not None:
        raise InvalidRequest({"image": ["URLs are for servers. Fetch the file and pass its path or its bytes."]})
    data = inputs.source_of(image).read()
    with _one_at_a_time:
        upscaler = _warm(device)
        return enlarge(data, recipe, upscaler, limits=limits, keep_metadata=keep_metadata, report=on_progress)


def enlarge(
    data: bytes,
    recipe: Recipe,
    upscaler: Upscaler,
    *,
    limits: Limits | None = None,
    keep_metadata: bool = True,
    report: Callable[[float], object] | None = None,
) -> Upscaled:
    """One file's bytes through the engine. Limits are checked before any pixel is decoded."""
    from hiresfix import images

    limits = limits or images.Limits()
    header = images.read_header(data, limits)
    images.check_output(header, recipe.scale, limits)
    images.check_format(header.width * recipe.scale, header.height * recipe.scale, recipe.output_format)

    def told(fraction: float) -> None:
        if report:
            report(fraction)

    made = upscaler.run(images.decode(data, limits), recipe, told)
    return Upscaled(picture=made.picture, recipe=recipe, metadata=made.metadata, keep_metadata=keep_metadata)


@cache
def _warm(device: str) -> Upscaler:
    try:
        from hiresfix.engine.upscaler import Upscaler
    except ModuleNotFoundError as error:
        told = "hiresfix.upscale needs the engine part. Install it with: pip install 'hiresfix[engine]'"
        raise ModuleNotFoundError(told, name=error.name) from error

    return Upscaler(device)


def model_called(name: str) -> Model:
    """Raises InvalidRequest for a model that is not in the catalog."""
    found = find_model(name)
    if found is None:
        raise InvalidRequest({"model": [f"Expected one of {', '.join(model.id for model in MODELS)}"]})
    return found


def recipe_of(model: Model, params: Mapping[str, Any], *, preset: str = "") -> Recipe:
    """The recipe for parameters by the API's names, a seed drawn if none is given.

    Raises InvalidRequest with everything that is wrong, by parameter.
    """
    problems = Problems()
    chosen = None
    try:
        chosen = presets.find(model, preset, home())
    except ConfigurationError as error:
        problems.add("preset", error.message)
    known = {param.name: param for param in model.params}
    values: dict[str, Any] = {}
    for name, raw in params.items():
        if name in known and name != "image":
            values[name] = problems.catch(name, canonical, known[name], raw)
        else:
            problems.add(name, _unknown(name, model))
    problems.raise_if_any()
    given = {name: value for name, value in values.items() if value is not None}
    return model.recipe(given, seed=secrets.randbelow(MAX_SEED + 1), preset=chosen)


def _unknown(name: str, model: Model) -> str:
    others = [other.id for other in MODELS if any(param.name == name for param in other.params)]
    if others and name != "image":
        return f"{model.id} has no such parameter; use the model {' or '.join(others)}"
    close = difflib.get_close_matches(name, [param.name for param in model.params], n=1)
    return f"{model.id} has no such parameter." + (f" Did you mean '{close[0]}'?" if close else "")
