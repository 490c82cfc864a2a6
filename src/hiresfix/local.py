"""Upscaling on this machine, without a server: `hiresfix.upscale`.

    result = hiresfix.upscale("in.jpg", scale=2, creativity=0.35)
    result.save("out.png")

The first call loads the engine, which stays loaded for the next ones. Parameters, bounds and messages are the API's.
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
from hiresfix.client.values import Params, with_full_names
from hiresfix.errors import ConfigurationError, InvalidRequest
from hiresfix.files import FORMAT_OF_SUFFIX, PartFile
from hiresfix.models import presets
from hiresfix.models.catalog import MODELS, CatalogModel, find_model
from hiresfix.paths import home
from hiresfix.recipe import MAX_SEED, OutputFormat, Recipe
from hiresfix.wire.params import canonical
from hiresfix.wire.problems import ProblemCollector

if TYPE_CHECKING:
    from PIL import Image as PillowModule

    from hiresfix.engine.upscaler import Upscaler
    from hiresfix.images import DecodedImage, EncodedImage, ImageLimits

_engine_lock = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaledImage:
    """Result of `hiresfix.upscale`. Saving keeps bit depth, transparency and profile as far as the format can.

    Attributes:
        decoded: pixels, alpha, profile and metadata.
        recipe: every parameter and setting that was used, the seed included.
        metadata: facts about the run from the engine.
        keep_metadata: write EXIF and XMP into the file.
    """

    decoded: DecodedImage = field(repr=False)
    recipe: Recipe
    metadata: Mapping[str, Any] = field(repr=False)
    keep_metadata: bool = True

    @property
    def seed(self) -> int:
        """Seed of the result; pass it again to make the same image."""
        return self.recipe.seed

    @property
    def width(self) -> int:
        return self.decoded.width

    @property
    def height(self) -> int:
        return self.decoded.height

    @property
    def image(self) -> PillowModule.Image:
        """Convert to a Pillow image: 8 bits per channel, the profile in `info`."""
        from PIL import Image as pillow  # noqa: N813  # `Image` is what a caller may pass

        with pillow.open(io.BytesIO(self.encode(OutputFormat.PNG).data)) as image:
            image.load()
            return image

    def encode(self, output_format: str | None = None) -> EncodedImage:
        """Encode as png, jpg or webp; by default the format that `upscale` was asked for. Raises ImageError."""
        from hiresfix import images

        file_format = OutputFormat(output_format or self.recipe.output_format)
        return images.encode(self.decoded, file_format, keep_metadata=self.keep_metadata)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a file in the format of its suffix, completely or not at all, and return its path.

        Raises ValueError for a suffix that cannot be written, ImageError if the format cannot hold the image.
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
    limits: ImageLimits | None = None,
    on_progress: Callable[[float], object] | None = None,
    **params: Unpack[Params],
) -> UpscaledImage:
    """Upscale an image on this machine.

    May be called from any thread; the calls run one after the other.

    Args:
        image: a path, bytes, an open file, a PIL.Image or an array.
        model: "clarity-upscale", or "faithful-upscale", which invents no detail.
        preset: for `clarity-upscale`: offline, clarity, clarity-classic or one of your own (`hiresfix.models.presets`).
        device: auto, cpu, cuda, cuda:1, mps.
        keep_metadata: False leaves EXIF and XMP out of the file.
        limits: largest input and output; by default those of a server.
        on_progress: called with numbers from 0 to 1. Raise `hiresfix.errors.Cancelled` in it to stop the engine.
        params: parameters of the model, all optional:

            scale            1, 2, 4, 8 (default 2)
            creativity       0 to 1 (default 0.35)
            resemblance      0 to 3 (default 0.6)
            dynamic          1 to 50 (default 6)
            steps            1 to 100 (default 18)
            sharpen          0 to 10 (default 0)
            prompt, negative_prompt, seed
            output_format    png, jpg, webp (default png)
            content          photo, anime (default photo); only of the model faithful-upscale

    Raises:
        InvalidRequest: unknown or invalid parameters.
        ImageError: the image cannot be read, or is over a limit.
        WeightsError: a weight file is missing or damaged.
        EngineFailed: the engine made no usable image.
        ModuleNotFoundError: the extra `engine` is not installed.
    """
    recipe = build_recipe(require_model(model), with_full_names(params), preset=preset)
    if inputs.url_of(image) is not None:
        raise InvalidRequest({"image": ["URLs are for servers. Fetch the file and pass its path or its bytes."]})
    data = inputs.source_of(image).read()
    with _engine_lock:
        upscaler = _upscaler_on(device)
        return upscale_bytes(
            data, recipe, upscaler, limits=limits, keep_metadata=keep_metadata, on_progress=on_progress
        )


def upscale_bytes(
    data: bytes,
    recipe: Recipe,
    upscaler: Upscaler,
    *,
    limits: ImageLimits | None = None,
    keep_metadata: bool = True,
    on_progress: Callable[[float], object] | None = None,
) -> UpscaledImage:
    """Upscale the bytes of one file. Limits are checked before any pixel is decoded."""
    from hiresfix import images

    limits = limits or images.ImageLimits()
    header = images.read_header(data, limits)
    images.check_output(header, recipe.scale, limits)
    images.check_format(header.width * recipe.scale, header.height * recipe.scale, recipe.output_format)

    def report(fraction: float) -> None:
        if on_progress:
            on_progress(fraction)

    result = upscaler.run(images.decode(data, limits), recipe, report)
    return UpscaledImage(decoded=result.image, recipe=recipe, metadata=result.metadata, keep_metadata=keep_metadata)


@cache
def _upscaler_on(device: str) -> Upscaler:
    try:
        from hiresfix.engine.upscaler import Upscaler
    except ModuleNotFoundError as error:
        message = "hiresfix.upscale needs the engine. Install it with: pip install 'hiresfix[engine]'"
        raise ModuleNotFoundError(message, name=error.name) from error

    return Upscaler(device)


def require_model(name: str) -> CatalogModel:
    """Return the model. Raises InvalidRequest if it is not in the catalog."""
    model = find_model(name)
    if model is None:
        raise InvalidRequest({"model": [f"Expected one of {', '.join(model.id for model in MODELS)}"]})
    return model


def build_recipe(model: CatalogModel, params: Mapping[str, Any], *, preset: str = "") -> Recipe:
    """Return the recipe for parameters by the API's names, with a random seed if none is given.

    Raises InvalidRequest with everything that is wrong, by parameter.
    """
    problems = ProblemCollector()
    base = None
    try:
        base = presets.find(model, preset, home())
    except ConfigurationError as error:
        problems.add("preset", error.message)
    known = {param.name: param for param in model.params}
    values: dict[str, Any] = {}
    for name, raw in params.items():
        if name in known and name != "image":
            values[name] = problems.catch(name, canonical, known[name], raw)
        else:
            problems.add(name, _unknown_parameter(name, model))
    problems.raise_if_any()
    set_values = {name: value for name, value in values.items() if value is not None}
    return model.recipe(set_values, seed=secrets.randbelow(MAX_SEED + 1), preset=base)


def _unknown_parameter(name: str, model: CatalogModel) -> str:
    others = [other.id for other in MODELS if any(param.name == name for param in other.params)]
    if others and name != "image":
        return f"{model.id} has no such parameter; use the model {' or '.join(others)}"
    close = difflib.get_close_matches(name, [param.name for param in model.params], n=1)
    return f"{model.id} has no such parameter." + (f" Did you mean '{close[0]}'?" if close else "")
