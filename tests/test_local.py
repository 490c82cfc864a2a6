"""`hiresfix.upscale`: the library without a server."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hiresfix
from hiresfix import errors
from hiresfix.client import Params
from hiresfix.client.values import SHORT
from hiresfix.models.catalog import MODELS
from tests.conftest import png


def small(image: Any, **more: Any) -> hiresfix.Upscaled:
    return hiresfix.upscale(image, model="faithful-upscale", content="anime", **more)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    path.write_bytes(png(20, 14))
    return path


def test_one_line_enlarges_and_saves(photo: Path, tmp_path: Path) -> None:
    result = hiresfix.upscale(photo, scale=2, creativity=0.35, seed=7)
    assert result.save(tmp_path / "new" / "out.jpg") == tmp_path / "new" / "out.jpg"
    with Image.open(tmp_path / "new" / "out.jpg") as saved:
        assert (saved.format, saved.size) == ("JPEG", (40, 28))
    assert (result.seed, result.width, result.height, result.image.size) == (7, 40, 28, (40, 28))
    assert result.metadata["quality"]
    again = hiresfix.upscale(photo, scale=2, creativity=0.35, seed=7)
    assert np.array_equal(again.picture.rgb, result.picture.rgb)


def test_every_way_to_give_a_picture_gives_the_same_result(photo: Path) -> None:
    with Image.open(photo) as opened:
        opened.load()
    ways: list[Any] = [str(photo), photo.read_bytes(), io.BytesIO(photo.read_bytes()), opened, np.asarray(opened)]
    expected = small(photo).picture.rgb
    for way in ways:
        assert np.array_equal(small(way).picture.rgb, expected), type(way)


def test_progress_is_told_and_can_stop_the_engine(photo: Path) -> None:
    heard: list[float] = []
    small(photo, on_progress=heard.append)
    assert (heard[0], heard[-1]) == (0.0, 1.0)
    assert heard == sorted(heard)

    def stop(fraction: float) -> None:
        raise errors.Cancelled

    with pytest.raises(errors.Cancelled):
        small(photo, on_progress=stop)
    assert small(photo).width == 40  # and the next one is not kept waiting


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
def test_wrong_parameters_are_named_as_a_server_names_them(
    photo: Path, options: dict[str, Any], path: str, hint: str
) -> None:
    with pytest.raises(errors.InvalidRequest, match=hint) as caught:
        hiresfix.upscale(photo, **options)
    assert list(caught.value.details) == [path]


def test_what_cannot_be_read_or_written_says_so(photo: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidRequest, match="Fetch the file"):
        small("https://example.com/in.png")
    with pytest.raises(errors.PictureError):
        small(b"no picture")
    with pytest.raises(ValueError, match=r"use \.png"):
        small(photo).save(tmp_path / "out.tiff")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png"]


@pytest.mark.parametrize("told", [hiresfix.Client, hiresfix.upscale], ids=["client", "upscale"])
def test_help_tells_every_knob_with_its_range(told: Any) -> None:
    text = " ".join((told.__doc__ or "").split())
    short = {long: brief for brief, long in SHORT.items()}
    for param in (param for model in MODELS for param in model.params if param.name != "image"):
        name = short.get(param.name, param.name)
        assert name in Params.__annotations__
        if param.choices:
            span = ", ".join(map(str, param.choices))
        else:
            span = f"{param.minimum} to {param.maximum}" if param.kind != "string" and param.name != "seed" else ""
        assert re.search(rf"\b{name} {re.escape(span)}" if span else rf"\b{name}\b", text), f"{name} {span}"


def test_the_package_offers_what_it_lists_and_nothing_else() -> None:
    for name in hiresfix.__all__:
        assert getattr(hiresfix, name) is not None
        assert name in dir(hiresfix)
    with pytest.raises(AttributeError, match="no attribute 'Clint'"):
        hiresfix.Clint  # type: ignore[attr-defined] # noqa: B018 # the mistake is the test
