"""`hiresfix.upscale`: upscaling without a server."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hiresfix
from hiresfix import errors
from hiresfix.client import Params
from hiresfix.client.values import FULL_NAMES
from hiresfix.models.catalog import MODELS
from hiresfix.models.param_help import range_text
from tests.conftest import png


def small(image: Any, **options: Any) -> hiresfix.UpscaledImage:
    return hiresfix.upscale(image, model="faithful-upscale", content="anime", **options)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    path.write_bytes(png(20, 14))
    return path


def test_upscale_and_save(photo: Path, tmp_path: Path) -> None:
    result = hiresfix.upscale(photo, scale=2, creativity=0.35, seed=7)
    assert result.save(tmp_path / "new" / "out.jpg") == tmp_path / "new" / "out.jpg"
    with Image.open(tmp_path / "new" / "out.jpg") as saved:
        assert (saved.format, saved.size) == ("JPEG", (40, 28))
    assert (result.seed, result.width, result.height, result.image.size) == (7, 40, 28, (40, 28))
    assert result.metadata["quality"]
    again = hiresfix.upscale(photo, scale=2, creativity=0.35, seed=7)
    assert np.array_equal(again.decoded.rgb, result.decoded.rgb)


def test_all_image_inputs_give_same_result(photo: Path) -> None:
    with Image.open(photo) as opened:
        opened.load()
    images: list[Any] = [str(photo), photo.read_bytes(), io.BytesIO(photo.read_bytes()), opened, np.asarray(opened)]
    expected = small(photo).decoded.rgb
    for image in images:
        assert np.array_equal(small(image).decoded.rgb, expected), type(image)


def test_progress_is_reported_and_can_cancel(photo: Path) -> None:
    reports: list[float] = []
    small(photo, on_progress=reports.append)
    assert (reports[0], reports[-1]) == (0.0, 1.0)
    assert reports == sorted(reports)

    def stop(fraction: float) -> None:
        raise errors.Cancelled

    with pytest.raises(errors.Cancelled):
        small(photo, on_progress=stop)
    assert small(photo).width == 40  # the lock is free again


@pytest.mark.parametrize(
    ("options", "path", "hint"),
    [
        ({"creativity": 3}, "creativity", "between 0 and 1"),
        ({"creativty": 0.3}, "creativty", "Did you mean 'creativity'"),
        ({"content": "anime"}, "content", "use the model faithful-upscale"),
        ({"model": "topaz"}, "model", "clarity-upscale"),
        ({"preset": "magic"}, "preset", "offline"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_parameters_raise_like_the_server(photo: Path, options: dict[str, Any], path: str, hint: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=hint) as caught:
        hiresfix.upscale(photo, **options)
    assert list(caught.value.details) == [path]


def test_unreadable_input_and_unwritable_output_raise(photo: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidRequest, match="Fetch the file"):
        small("https://example.com/in.png")
    with pytest.raises(errors.ImageError):
        small(b"not an image")
    with pytest.raises(ValueError, match=r"use \.png"):
        small(photo).save(tmp_path / "out.tiff")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png"]


@pytest.mark.parametrize("documented", [hiresfix.Client, hiresfix.upscale], ids=["client", "upscale"])
def test_docstrings_state_ranges_and_defaults(documented: Any) -> None:
    text = " ".join((documented.__doc__ or "").split())
    short_names = {full: short for short, full in FULL_NAMES.items()}
    for param in (param for model in MODELS for param in model.params if param.name != "image"):
        name = short_names.get(param.name, param.name)
        assert name in Params.__annotations__
        span = range_text(param)
        assert (f"{name} {span} (default {param.default})" if span else name) in text, param.name


def test_package_exports_match_all() -> None:
    for name in hiresfix.__all__:
        assert getattr(hiresfix, name) is not None
        assert name in dir(hiresfix)
    with pytest.raises(AttributeError, match="no attribute 'Clint'"):
        hiresfix.Clint  # type: ignore[attr-defined] # noqa: B018 # the mistake is the test


def test_old_names_work_with_a_warning() -> None:
    for old, new in (("Terms", hiresfix.RetryPolicy), ("Upscaled", hiresfix.UpscaledImage)):
        with pytest.warns(DeprecationWarning, match=f"{old} is now called {new.__name__}"):
            assert getattr(hiresfix, old) is new
