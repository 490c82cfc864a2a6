"""The offline creative engine: every knob does what it says, on a photograph and with the default network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hiresfix.engine.superres import offline
from hiresfix.engine.upscaler import Upscaled, Upscaler
from hiresfix.errors import Cancelled
from hiresfix.images import DecodedImage
from hiresfix.recipe import AUTO, Engine, Recipe
from tests import ROOT
from tests.sample_images import photo

PHOTOGRAPH = np.asarray(Image.open(ROOT / "examples" / "colosseum.png").convert("RGB"))
CREATIVE = Recipe(engine=Engine.GAN_PRIOR, seed=7)
QUICK = replace(CREATIVE, enlarger="realesr-animevideov3")
CROPS = {"wall": PHOTOGRAPH[150:182, 120:152], "stones": PHOTOGRAPH[240:272, 190:222]}


@pytest.fixture(scope="module")
def engine() -> Upscaler:
    return Upscaler("cpu")


def silent(fraction: float) -> None:
    pass


def upscale(engine: Upscaler, rgb: NDArray[Any], recipe: Recipe) -> Upscaled:
    return engine.run(DecodedImage(rgb=rgb), recipe, silent)


def detail(rgb: NDArray[Any]) -> float:
    """Energy of the luminance above a quarter of a cycle for each pixel."""
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    spectrum = (
        np.abs(np.fft.fft2((luma - luma.mean()) * np.hanning(len(luma))[:, None] * np.hanning(len(luma[0])))) ** 2
    )
    rows, columns = (np.fft.fftfreq(side) for side in luma.shape)
    return float(spectrum[np.hypot(rows[:, None], columns) > 0.25].sum())


def rising(values: Sequence[float], *, least: float) -> bool:
    """Whether each is more than the one before, and the last `least` times the first."""
    return all(one < other for one, other in itertools.pairwise(values)) and values[-1] > least * values[0]


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize(
    ("knob", "values", "least"),
    [
        ("creativity", (0.0, 0.35, 1.0), 1.03),
        ("dynamic", (1.0, 6.0, 20.0, 50.0), 1.5),
        ("steps", (29, 30, 60), 1.02),
    ],
)
def test_more_of_a_knob_gives_more_detail(
    engine: Upscaler, crop: str, knob: str, values: tuple[float, ...], least: float
) -> None:
    recipes = [Recipe.from_dict(CREATIVE.to_dict() | {knob: value}) for value in values]
    assert rising([detail(upscale(engine, CROPS[crop], recipe).picture.rgb) for recipe in recipes], least=least)


@pytest.mark.parametrize("crop", CROPS)
def test_more_resemblance_gives_less_drift_even_of_what_was_invented(engine: Upscaler, crop: str) -> None:
    recipes = (replace(CREATIVE, creativity=1.0, resemblance=value) for value in (0.0, 0.6, 1.0, 3.0))
    drifts = [upscale(engine, CROPS[crop], recipe).metadata["quality"]["drift_db"] for recipe in recipes]
    assert rising(drifts, least=1.3)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_creativity_zero_is_the_enlarger_alone_bit_for_bit(engine: Upscaler, scale: int) -> None:
    tame = replace(QUICK, creativity=0.0, scale=scale, steps=100)
    alone = replace(tame, engine=Engine.FAITHFUL)
    rgb = PHOTOGRAPH[100:124, 100:130]
    recipes = (tame, alone, replace(tame, creativity=1.0))
    nothing, enlarged, bold = (upscale(engine, rgb, recipe).picture.rgb for recipe in recipes)
    np.testing.assert_array_equal(nothing, enlarged)
    assert (bold != enlarged).any()


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_the_seed_decides_the_detail_and_nothing_else_does(engine: Upscaler, scale: int) -> None:
    rgb = PHOTOGRAPH[100:120, 100:124]
    recipe = replace(QUICK, scale=scale, creativity=0.8)
    first, again, other = (upscale(engine, rgb, replace(recipe, seed=seed)).picture.rgb for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert 0 < np.abs(first.astype(int) - other).mean() < 8


def test_a_tiled_run_and_a_crop_of_it_are_the_untiled_run(engine: Upscaler) -> None:
    rgb = np.tile(PHOTOGRAPH[:52], (1, 2, 1))[:, :500]
    recipe = replace(QUICK, creativity=1.0, steps=30)
    whole, tiled = (upscale(engine, rgb, replace(recipe, tile=tile)).picture.rgb.astype(int) for tile in (2048, 32))
    assert np.abs(whole - tiled).max() <= 1  # convolutions of another size may round in another way
    crop = upscale(engine, rgb[:, :100], recipe).picture.rgb[:, :80]
    assert np.abs(whole[:, :80] - crop).max() <= 1


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_flat_picture_stays_flat_at_full_creativity(engine: Upscaler, scale: int) -> None:
    rgb = np.full((20, 24, 3), (128, 64, 200), np.uint8)
    result = upscale(engine, rgb, replace(CREATIVE, creativity=1.0, scale=scale, steps=30)).picture.rgb
    assert np.abs(result.astype(int) - rgb[0, 0]).max() <= 1


def test_plain_areas_of_a_picture_stay_as_plain_as_the_enlarger_leaves_them(engine: Upscaler) -> None:
    """A wall with faint grain beside gravel: no more than half a level of grain comes to it."""
    rgb = photo(72, 40)
    rgb[:, :40] = (np.random.default_rng(0).normal(128, 0.6, (40, 40, 1)) + np.array([40, 0, -30])).round()
    bold = replace(CREATIVE, creativity=1.0)
    alone, invented = (
        upscale(engine, rgb, recipe).picture.rgb[16:-16, 16:50].std((0, 1)).mean()
        for recipe in (replace(bold, engine=Engine.FAITHFUL), bold)
    )
    assert invented < alone + 0.5


def test_the_defaults_keep_to_the_input(engine: Upscaler) -> None:
    for crop in CROPS.values():
        for scale in (2, 4):
            quality = upscale(engine, crop, replace(CREATIVE, scale=scale)).metadata["quality"]
            assert quality["drift_db"] > 40
            assert quality["ciede2000_mean"] < 1


def test_damage_is_not_copied_back_unless_the_caller_asks(engine: Upscaler) -> None:
    """A network removes grain; following the grainy input pixel by pixel would bring it back."""
    grain = np.random.default_rng(0).normal(0, 12, (48, 48, 3))
    grainy = np.clip(np.array([180, 120, 90]) + grain, 0, 255).astype(np.uint8)
    made = upscale(engine, grainy, replace(CREATIVE, enlarger=AUTO))
    assert made.metadata["enlarger"]["name"] == "realesrgan-x4plus"
    assert any("damaged" in warning for warning in made.metadata["warnings"])
    assert float(made.picture.rgb.std((0, 1)).max()) < 3
    np.testing.assert_allclose(made.picture.rgb.mean((0, 1)), grainy.mean((0, 1)), atol=1)

    exact = upscale(engine, grainy, replace(CREATIVE, enlarger=AUTO, resemblance=3.0))
    assert float(exact.picture.rgb.std((0, 1)).min()) > 8


def test_sixteen_bits_and_transparency_survive(engine: Upscaler) -> None:
    rgb = PHOTOGRAPH[:20, :24].astype(np.uint16) * 257
    alpha = np.full(rgb.shape[:2], 65535, np.uint16)
    alpha[:, 12:] = 0
    result = engine.run(DecodedImage(rgb=rgb, alpha=alpha), replace(QUICK, creativity=1.0), silent).picture
    assert result.rgb.dtype == np.uint16
    assert len(np.unique(result.rgb % 257)) > 100
    assert result.alpha is not None
    assert (result.alpha[:, 0] == 65535).all()
    assert not result.alpha[:, -1].any()


def test_every_evaluation_counts_in_the_progress_and_can_be_stopped(engine: Upscaler) -> None:
    told: list[float] = []
    picture, recipe = DecodedImage(rgb=PHOTOGRAPH[:24, :24]), replace(QUICK, steps=60)
    engine.run(picture, recipe, told.append)
    assert told == sorted(told)
    for third in range(3):  # one evaluation each
        assert any(third / 3 < fraction < (third + 1) / 3 for fraction in told)
    for late in (0.2, 0.5, 0.9):
        reached: list[float] = []

        def stop(fraction: float, late: float = late, reached: list[float] = reached) -> None:
            reached.append(fraction)
            if fraction > late:
                raise Cancelled

        with pytest.raises(Cancelled):
            engine.run(picture, recipe, stop)
        assert reached[-1] < late + 0.2


@pytest.mark.parametrize(("steps", "evaluations"), [(1, 1), (18, 1), (29, 1), (30, 2), (59, 2), (60, 3), (100, 3)])
def test_steps_buy_evaluations(steps: int, evaluations: int) -> None:
    assert offline.evaluations(steps) == evaluations


def test_the_default_dynamic_changes_nothing_and_its_range_is_used_up() -> None:
    assert offline.gain(6) == 1
    assert offline.gain(1) == pytest.approx(0.7)
    assert offline.gain(50) == pytest.approx(1.3)


def test_a_later_pass_has_a_seed_of_its_own_and_less_creativity() -> None:
    recipe = replace(CREATIVE, creativity=0.5, seed=2**53 - 1)
    assert recipe.of_pass(0) == recipe
    assert recipe.of_pass(1).seed == 0
    assert recipe.of_pass(1).creativity == pytest.approx(0.4)


def test_the_account_says_what_was_found_chosen_and_computed(engine: Upscaler) -> None:
    account = upscale(engine, PHOTOGRAPH[:24, :24], replace(CREATIVE, enlarger=AUTO, scale=8, steps=1)).metadata
    assert account["engine"] == "gan-prior"
    assert account["evaluations"] == [1, 1]
    assert account["enlarger"]["name"] == account["weights"][0]["name"] != AUTO
    assert account["enlarger"]["because"]
    assert account["input"]["noise"] >= 0
    assert ["prompt" in warning for warning in account["warnings"]] == [True]


def test_a_fixed_enlarger_is_not_overruled(engine: Upscaler) -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    assert upscale(engine, noisy, QUICK).metadata["enlarger"]["name"] == QUICK.enlarger
    assert upscale(engine, noisy, replace(QUICK, enlarger=AUTO)).metadata["enlarger"]["name"] == "realesrgan-x4plus"
