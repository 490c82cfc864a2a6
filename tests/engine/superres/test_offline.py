"""Every parameter of the offline engine has its effect, on a photo and with the default network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hiresfix.engine.pixels.arrays import LUMA_WEIGHTS
from hiresfix.engine.superres import offline
from hiresfix.engine.upscaler import EngineResult, Upscaler
from hiresfix.errors import Cancelled
from hiresfix.images import DecodedImage
from hiresfix.recipe import AUTO, Engine, Recipe
from tests import ROOT
from tests.sample_images import photo

PHOTO = np.asarray(Image.open(ROOT / "examples" / "colosseum.png").convert("RGB"))
CREATIVE = Recipe(engine=Engine.OFFLINE, seed=7)
QUICK = replace(CREATIVE, enlarger="realesr-animevideov3")
CROPS = {"wall": PHOTO[150:182, 120:152], "stones": PHOTO[240:272, 190:222]}


@pytest.fixture(scope="module")
def engine() -> Upscaler:
    return Upscaler("cpu")


def silent(fraction: float) -> None:
    pass


def upscale(engine: Upscaler, rgb: NDArray[Any], recipe: Recipe) -> EngineResult:
    return engine.run(DecodedImage(rgb=rgb), recipe, silent)


def detail(rgb: NDArray[Any]) -> float:
    """Return the energy of the luminance above a quarter of a cycle per pixel."""
    luma = rgb @ np.array(LUMA_WEIGHTS)
    spectrum = (
        np.abs(np.fft.fft2((luma - luma.mean()) * np.hanning(len(luma))[:, None] * np.hanning(len(luma[0])))) ** 2
    )
    rows, columns = (np.fft.fftfreq(side) for side in luma.shape)
    return float(spectrum[np.hypot(rows[:, None], columns) > 0.25].sum())


def rising(values: Sequence[float], *, least: float) -> bool:
    """Return True if each value exceeds the one before, and the last is `least` times the first."""
    return all(one < other for one, other in itertools.pairwise(values)) and values[-1] > least * values[0]


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize(
    ("parameter", "values", "least"),
    [
        ("creativity", (0.0, 0.35, 1.0), 1.03),
        ("dynamic", (1.0, 6.0, 20.0, 50.0), 1.5),
        ("steps", (29, 30, 60), 1.02),
    ],
)
def test_higher_parameters_give_more_detail(
    engine: Upscaler, crop: str, parameter: str, values: tuple[float, ...], least: float
) -> None:
    recipes = [Recipe.from_dict(CREATIVE.to_dict() | {parameter: value}) for value in values]
    assert rising([detail(upscale(engine, CROPS[crop], recipe).image.rgb) for recipe in recipes], least=least)


@pytest.mark.parametrize("crop", CROPS)
def test_more_resemblance_gives_less_drift(engine: Upscaler, crop: str) -> None:
    recipes = (replace(CREATIVE, creativity=1.0, resemblance=value) for value in (0.0, 0.6, 1.0, 3.0))
    drifts = [upscale(engine, CROPS[crop], recipe).metadata["quality"]["drift_db"] for recipe in recipes]
    assert rising(drifts, least=1.3)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_creativity_zero_is_the_network_alone(engine: Upscaler, scale: int) -> None:
    tame = replace(QUICK, creativity=0.0, scale=scale, steps=100)
    alone = replace(tame, engine=Engine.FAITHFUL)
    rgb = PHOTO[100:124, 100:130]
    recipes = (tame, alone, replace(tame, creativity=1.0))
    plain, faithful, bold = (upscale(engine, rgb, recipe).image.rgb for recipe in recipes)
    np.testing.assert_array_equal(plain, faithful)
    assert (bold != faithful).any()


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_only_the_seed_decides_the_detail(engine: Upscaler, scale: int) -> None:
    rgb = PHOTO[100:120, 100:124]
    recipe = replace(QUICK, scale=scale, creativity=0.8)
    first, again, other = (upscale(engine, rgb, replace(recipe, seed=seed)).image.rgb for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert 0 < np.abs(first.astype(int) - other).mean() < 8


def test_tiles_and_crops_match_the_untiled_run(engine: Upscaler) -> None:
    rgb = np.tile(PHOTO[:52], (1, 2, 1))[:, :500]
    recipe = replace(QUICK, creativity=1.0, steps=30)
    whole, tiled = (upscale(engine, rgb, replace(recipe, tile=tile)).image.rgb.astype(int) for tile in (2048, 32))
    assert np.abs(whole - tiled).max() <= 1  # convolutions of another size may round differently
    crop = upscale(engine, rgb[:, :100], recipe).image.rgb[:, :80]
    assert np.abs(whole[:, :80] - crop).max() <= 1


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_flat_image_stays_flat_at_full_creativity(engine: Upscaler, scale: int) -> None:
    rgb = np.full((20, 24, 3), (128, 64, 200), np.uint8)
    result = upscale(engine, rgb, replace(CREATIVE, creativity=1.0, scale=scale, steps=30)).image.rgb
    assert np.abs(result.astype(int) - rgb[0, 0]).max() <= 1


def test_plain_areas_get_no_grain(engine: Upscaler) -> None:
    """A wall with faint grain beside gravel gets at most half a level of grain."""
    rgb = photo(72, 40)
    rgb[:, :40] = (np.random.default_rng(0).normal(128, 0.6, (40, 40, 1)) + np.array([40, 0, -30])).round()
    bold = replace(CREATIVE, creativity=1.0)
    alone, creative = (
        upscale(engine, rgb, recipe).image.rgb[16:-16, 16:50].std((0, 1)).mean()
        for recipe in (replace(bold, engine=Engine.FAITHFUL), bold)
    )
    assert creative < alone + 0.5


def test_defaults_stay_close_to_the_input(engine: Upscaler) -> None:
    for crop in CROPS.values():
        for scale in (2, 4):
            quality = upscale(engine, crop, replace(CREATIVE, scale=scale)).metadata["quality"]
            assert quality["drift_db"] > 40
            assert quality["ciede2000_mean"] < 1


def test_damage_returns_only_on_request(engine: Upscaler) -> None:
    """A network removes grain; following the grainy input pixel by pixel would bring it back."""
    grain = np.random.default_rng(0).normal(0, 12, (48, 48, 3))
    grainy = np.clip(np.array([180, 120, 90]) + grain, 0, 255).astype(np.uint8)
    result = upscale(engine, grainy, replace(CREATIVE, enlarger=AUTO))
    assert result.metadata["enlarger"]["name"] == "realesrgan-x4plus"
    assert any("damaged" in warning for warning in result.metadata["warnings"])
    assert float(result.image.rgb.std((0, 1)).max()) < 3
    np.testing.assert_allclose(result.image.rgb.mean((0, 1)), grainy.mean((0, 1)), atol=1)

    exact = upscale(engine, grainy, replace(CREATIVE, enlarger=AUTO, resemblance=3.0))
    assert float(exact.image.rgb.std((0, 1)).min()) > 8


def test_sixteen_bits_and_transparency_survive(engine: Upscaler) -> None:
    rgb = PHOTO[:20, :24].astype(np.uint16) * 257
    alpha = np.full(rgb.shape[:2], 65535, np.uint16)
    alpha[:, 12:] = 0
    result = engine.run(DecodedImage(rgb=rgb, alpha=alpha), replace(QUICK, creativity=1.0), silent).image
    assert result.rgb.dtype == np.uint16
    assert len(np.unique(result.rgb % 257)) > 100
    assert result.alpha is not None
    assert (result.alpha[:, 0] == 65535).all()
    assert not result.alpha[:, -1].any()


def test_every_evaluation_reports_and_can_stop(engine: Upscaler) -> None:
    reported: list[float] = []
    image, recipe = DecodedImage(rgb=PHOTO[:24, :24]), replace(QUICK, steps=60)
    engine.run(image, recipe, reported.append)
    assert reported == sorted(reported)
    for third in range(3):  # one for each evaluation
        assert any(third / 3 < fraction < (third + 1) / 3 for fraction in reported)
    for late in (0.2, 0.5, 0.9):
        reached: list[float] = []

        def stop(fraction: float, late: float = late, reached: list[float] = reached) -> None:
            reached.append(fraction)
            if fraction > late:
                raise Cancelled

        with pytest.raises(Cancelled):
            engine.run(image, recipe, stop)
        assert reached[-1] < late + 0.2


@pytest.mark.parametrize(("steps", "evaluations"), [(1, 1), (18, 1), (29, 1), (30, 2), (59, 2), (60, 3), (100, 3)])
def test_steps_decide_evaluations(steps: int, evaluations: int) -> None:
    assert offline.evaluations(steps) == evaluations


def test_gain_covers_the_range_of_dynamic() -> None:
    assert offline.gain(6) == 1
    assert offline.gain(1) == pytest.approx(0.7)
    assert offline.gain(50) == pytest.approx(1.3)


def test_later_pass_has_new_seed_and_less_creativity() -> None:
    recipe = replace(CREATIVE, creativity=0.5, seed=2**53 - 1)
    assert recipe.for_pass(0) == recipe
    assert recipe.for_pass(1).seed == 0
    assert recipe.for_pass(1).creativity == pytest.approx(0.4)


def test_metadata_describes_input_choice_and_work(engine: Upscaler) -> None:
    metadata = upscale(engine, PHOTO[:24, :24], replace(CREATIVE, enlarger=AUTO, scale=8, steps=1)).metadata
    assert metadata["engine"] == "gan-prior"
    assert metadata["evaluations"] == [1, 1]
    assert metadata["enlarger"]["name"] == metadata["weights"][0]["name"] != AUTO
    assert metadata["enlarger"]["because"]
    assert metadata["input"]["noise"] >= 0
    assert ["prompt" in warning for warning in metadata["warnings"]] == [True]


def test_named_network_is_not_overruled(engine: Upscaler) -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    assert upscale(engine, noisy, QUICK).metadata["enlarger"]["name"] == QUICK.enlarger
    assert upscale(engine, noisy, replace(QUICK, enlarger=AUTO)).metadata["enlarger"]["name"] == "realesrgan-x4plus"
