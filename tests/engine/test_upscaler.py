"""The engine's front page: sizes, depth, transparency, account of what was done, and refusing bad results."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from hiresfix.engine import devices, upscaler
from hiresfix.engine.analysis.metrics import Quality
from hiresfix.engine.progress import Report
from hiresfix.engine.superres import offline, tiled_inference
from hiresfix.engine.superres.networks import SRVGGNetCompact
from hiresfix.engine.upscaler import Upscaler
from hiresfix.errors import BadResult, Cancelled, WeightsError
from hiresfix.images import DecodedImage
from hiresfix.models.catalog import WEIGHTS, WeightFile
from hiresfix.recipe import Engine, Recipe
from tests.sample_images import photo

QUICK = "realesr-animevideov3"
FAITHFUL = Recipe(enlarger=QUICK, resemblance=3.0)
CREATIVE = Recipe(enlarger=QUICK, engine=Engine.GAN_PRIOR)


@pytest.fixture(scope="module")
def engine() -> Upscaler:
    return Upscaler("cpu")


def silent(fraction: float) -> None:
    pass


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (100, 1), (1, 37), (3, 5), (21, 13)])
def test_the_result_is_exactly_scale_times_the_input(engine: Upscaler, scale: int, width: int, height: int) -> None:
    picture = DecodedImage(rgb=photo(width, height))
    result = engine.run(picture, replace(FAITHFUL, scale=scale), silent).picture
    assert result.size == (width * scale, height * scale)
    assert result.rgb.dtype == np.uint8


@pytest.mark.parametrize("recipe", [FAITHFUL, CREATIVE], ids=["faithful", "creative"])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_the_result_looks_like_the_input_and_not_like_interpolation(
    engine: Upscaler, recipe: Recipe, scale: int
) -> None:
    picture = DecodedImage(rgb=photo(32, 24, seed=2))
    upscaled = engine.run(picture, replace(recipe, scale=scale), silent)
    shrunk = upscaled.picture.rgb.reshape(24, scale, 32, scale, 3).mean((1, 3))
    assert np.abs(shrunk - picture.rgb).mean() < 6
    assert upscaled.metadata["quality"]["drift_db"] > 30
    assert np.abs(upscaled.picture.rgb.astype(int) - picture.rgb.repeat(scale, 0).repeat(scale, 1)).mean() > 1


def test_sixteen_bits_stay_sixteen_bits(engine: Upscaler) -> None:
    ramp = np.linspace(20000, 21000, 24 * 20).reshape(20, 24, 1) * np.ones(3)
    result = engine.run(DecodedImage(rgb=ramp.round().astype(np.uint16)), FAITHFUL, silent).picture.rgb
    assert result.dtype == np.uint16
    assert len(np.unique(result)) > 200  # in eight bits these would be five levels
    assert 19500 < result.min() < result.max() < 21500


def disc(side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A red disc; under its transparent surroundings lies white, which must not be seen."""
    y, x = np.mgrid[:side, :side] + 0.5
    distance = np.hypot(y - side / 2, x - side / 2)
    alpha = ((side / 3 - distance).clip(0, 1) * 255).round().astype(np.uint8)
    rgb = np.where(alpha[..., None] > 0, [220, 20, 30], [255, 255, 255]).astype(np.uint8)
    return rgb, alpha


@pytest.mark.parametrize(
    "recipe", [FAITHFUL, CREATIVE, replace(FAITHFUL, sharpen=4.0)], ids=["faithful", "creative", "sharp"]
)
def test_a_disc_on_nothing_gets_no_fringe_over_black_or_white(engine: Upscaler, recipe: Recipe) -> None:
    rgb, alpha = disc(36)
    result = engine.run(DecodedImage(rgb=rgb, alpha=alpha), recipe, silent).picture
    assert result.alpha is not None
    assert result.alpha.shape == result.rgb.shape[:2] == (72, 72)
    cover = result.alpha[..., None] / 255
    for ground in (0, 255):
        composite = result.rgb * cover + ground * (1 - cover)
        wanted = np.array([220, 20, 30]) * cover + ground * (1 - cover)
        assert np.abs(composite - wanted).max() < 14
    inside = result.alpha == 255
    assert inside.sum() == pytest.approx((alpha == 255).sum() * 4, rel=0.1)


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: weight.name)
def test_nothing_moves_by_a_tenth_of_a_pixel(engine: Upscaler, weight: WeightFile) -> None:
    """The networks alone move shapes by up to half a pixel of the result; following the input takes that back."""
    y, x = np.mgrid[:25, :27]
    blob = np.exp(-((y - 11.3) ** 2 + (x - 14.6) ** 2) / (2 * 3.0**2))
    rgb = (30 + 200 * blob[..., None] * np.ones(3)).round().astype(np.uint8)
    for scale in (2, 4):
        result = engine.run(DecodedImage(rgb=rgb), Recipe(enlarger=weight.name, scale=scale), silent).picture.rgb
        assert np.abs(centre(result) - centre(rgb) * scale).max() < 0.1


def centre(pixels: NDArray[np.generic]) -> NDArray[np.float64]:
    """(row, column) of the centre of what is brighter than the ground, in pixels from the upper left corner."""
    mass = (pixels.astype(np.float64).mean(2) - 60).clip(0)
    rows, columns = np.mgrid[: mass.shape[0], : mass.shape[1]] + 0.5
    return np.asarray([(rows * mass).sum() / mass.sum(), (columns * mass).sum() / mass.sum()])


def test_what_travels_with_a_picture_arrives(engine: Upscaler) -> None:
    picture = DecodedImage(
        rgb=photo(6, 5), icc=b"profile", exif=b"II*\0", xmp=b"<x/>", dpi=(300.0, 300.0), notes=("A note.",)
    )
    result = engine.run(picture, FAITHFUL, silent).picture
    assert replace(result, rgb=picture.rgb) is not picture
    for name in ("icc", "exif", "xmp", "dpi", "notes", "grey", "alpha"):
        assert getattr(result, name) == getattr(picture, name)


def test_the_account_is_plain_json_and_names_weights_device_and_quality(engine: Upscaler) -> None:
    account = engine.run(DecodedImage(rgb=photo(12, 10)), replace(FAITHFUL, tile=64), silent).metadata
    assert json.loads(json.dumps(account)) == account
    weight = next(weight for weight in WEIGHTS if weight.name == QUICK)
    assert account["weights"] == [{"name": QUICK, "sha256": weight.sha256}]
    assert account["device"] == "cpu"
    assert account["dtype"] in ("float32", "bfloat16")
    assert account["tile"] == 64
    assert account["warnings"] == []
    assert account["engine"].startswith("faithful")


@pytest.mark.parametrize("recipe", [FAITHFUL, CREATIVE], ids=["faithful", "creative"])
def test_the_account_has_every_figure_of_quality(engine: Upscaler, recipe: Recipe) -> None:
    """The picture is wide enough to be cut into strips, so that there are borders to judge."""
    wide = replace(recipe, tile=32, resemblance=0.6)
    quality = engine.run(DecodedImage(rgb=photo(300, 80)), wide, silent).metadata["quality"]
    assert set(quality) == {field.name for field in fields(Quality)}
    assert quality["drift_db"] >= 34
    assert 0 < quality["ciede2000_mean"] <= 1
    assert quality["ciede2000_mean"] < quality["ciede2000_p95"] <= 3
    assert 0 < quality["shift_px"] <= 0.1
    # Few segments, of a picture made of chance: a real seam is several times that.
    assert quality["seam_ratio"] <= 1.1
    assert quality["seam_ratio_stretched"] <= 1.1
    assert quality["alive"] is True


def test_a_picture_computed_in_one_piece_has_no_seam_to_judge(engine: Upscaler) -> None:
    assert engine.run(DecodedImage(rgb=photo(24, 20)), FAITHFUL, silent).metadata["quality"]["seam_ratio"] is None


def test_more_resemblance_means_less_drift(engine: Upscaler) -> None:
    picture = DecodedImage(rgb=photo(40, 30))
    drifts = [
        engine.run(picture, replace(CREATIVE, resemblance=value), silent).metadata["quality"]["drift_db"]
        for value in (0.0, 0.3, 0.6, 1.0, 2.0, 3.0)
    ]
    assert drifts == sorted(drifts)
    assert drifts[-1] > drifts[0] + 6


def test_sharpening_acts(engine: Upscaler) -> None:
    def roughness(strength: float) -> float:
        rgb = engine.run(DecodedImage(rgb=photo(24, 24)), replace(FAITHFUL, sharpen=strength), silent).picture.rgb
        return float(np.abs(np.diff(rgb.astype(int), axis=1)).mean())

    assert roughness(0) < roughness(2) < roughness(10)


def test_equal_recipes_give_equal_pixels_whatever_the_seed_where_nothing_is_invented(engine: Upscaler) -> None:
    picture = DecodedImage(rgb=photo(20, 20))
    first, again, seeded = (engine.run(picture, replace(FAITHFUL, seed=seed), silent).picture.rgb for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, seeded)


@pytest.mark.parametrize("scale", [2, 8])
def test_progress_begins_at_nothing_never_falls_and_ends_at_one(engine: Upscaler, scale: int) -> None:
    told: list[float] = []
    engine.run(DecodedImage(rgb=photo(12, 40)), replace(FAITHFUL, scale=scale, tile=32), told.append)
    assert told[0] == 0
    assert told[-1] == 1
    assert told == sorted(told)
    assert len(set(told)) > 4


def test_a_report_that_raises_stops_the_run(engine: Upscaler) -> None:
    def stop(fraction: float) -> None:
        if fraction > 0:
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.run(DecodedImage(rgb=photo(20, 20)), FAITHFUL, stop)


def test_running_out_of_memory_halves_the_tile_and_goes_on(engine: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = tiled_inference.enlarge

    def scarce(network: object, rgb: object, tile: int, **rest: object) -> object:
        if tile > 64:
            cast(Report, rest["report"])(0.4)  # it had come that far
            raise torch.OutOfMemoryError("out of memory")
        return genuine(network, rgb, tile, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tiled_inference, "enlarge", scarce)
    told: list[float] = []
    upscaled = engine.run(DecodedImage(rgb=photo(20, 20)), FAITHFUL, told.append)
    assert upscaled.metadata["tile"] == 64
    assert upscaled.picture.size == (40, 40)
    assert told == sorted(told)


def test_unknown_weights_are_named(engine: Upscaler) -> None:
    with pytest.raises(WeightsError, match="swinir"):
        engine.run(DecodedImage(rgb=photo(4, 4)), replace(FAITHFUL, enlarger="swinir"), silent)


@pytest.fixture
def blackening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightFile:
    """A healthy file of a network that paints everything black."""
    network = SRVGGNetCompact(convs=1, features=4)
    state = dict(network.state_dict())
    state["body.4.bias"] = torch.full_like(state["body.4.bias"], -9.0)
    (tmp_path / "black_wheel").mkdir()
    path = tmp_path / "black_wheel" / "black.safetensors"
    safetensors.torch.save_file(state, path)
    monkeypatch.syspath_prepend(str(tmp_path))
    weight = replace(
        WEIGHTS[0],
        name="black",
        package="black_wheel",
        file=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    monkeypatch.setattr(upscaler, "find_weights", lambda name: weight)
    return weight


def test_a_black_result_of_a_picture_that_is_not_black_is_an_error(engine: Upscaler, blackening: WeightFile) -> None:
    recipe = Recipe(enlarger=blackening.name, resemblance=0.0)
    with pytest.raises(BadResult, match="came out black"):
        engine.run(DecodedImage(rgb=photo(16, 16)), recipe, silent)
    black = engine.run(DecodedImage(rgb=np.zeros((16, 16, 3), np.uint8)), recipe, silent)
    assert not black.picture.rgb.any()


def test_a_result_in_one_colour_of_a_picture_with_more_is_an_error(
    engine: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grey(network: object, rgb: NDArray[np.uint8], *_: object, factor: int, **__: object) -> object:
        return np.full((rgb.shape[0] * factor, rgb.shape[1] * factor, 3), 128, np.uint8), 256

    monkeypatch.setattr(offline, "run", grey)
    recipe = replace(FAITHFUL, least_drift_db=0.0)
    with pytest.raises(BadResult, match="one colour"):
        engine.run(DecodedImage(rgb=photo(16, 16)), recipe, silent)
    assert engine.run(DecodedImage(rgb=np.full((16, 16, 3), 120, np.uint8)), recipe, silent).picture.size == (32, 32)


def test_a_result_that_is_another_picture_is_not_returned(engine: Upscaler) -> None:
    """Where the recipe draws the line; a grain so faint that it may be smoothed away is no sign of failure."""
    recipe = Recipe(enlarger="realesr-animevideov3", resemblance=0.0, least_drift_db=60.0)
    with pytest.raises(BadResult, match="dB from the input, and 60 are the least"):
        engine.run(DecodedImage(rgb=photo(16, 16)), recipe, silent)
    engine.run(DecodedImage(rgb=photo(16, 16)), replace(recipe, least_drift_db=12.0), silent)
    flat = np.full((16, 16, 3), 120, np.uint8)
    flat[3, 4] = 121
    engine.run(DecodedImage(rgb=flat), replace(recipe, least_drift_db=12.0), silent)


@pytest.mark.parametrize(
    ("scale", "network_scale", "factors"),
    [(1, 4, [1]), (2, 4, [2]), (4, 4, [4]), (8, 4, [4, 2]), (8, 2, [2, 2, 2]), (1, 1, [1])],
)
def test_a_scale_is_reached_in_passes_no_larger_than_the_network(
    scale: int, network_scale: int, factors: list[int]
) -> None:
    assert upscaler.passes(scale, network_scale) == factors


def test_a_network_that_does_not_enlarge_cannot_be_asked_to() -> None:
    with pytest.raises(WeightsError, match="scale 1 cannot enlarge 2 times"):
        upscaler.passes(2, 1)


@pytest.mark.gpu
def test_the_gpu_gives_what_the_cpu_gives() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    picture, recipe = DecodedImage(rgb=photo(200, 120)), Recipe(resemblance=0.6, tile=64)
    on_cpu, on_gpu = (Upscaler(device).run(picture, recipe, silent).picture.rgb for device in ("cpu", "cuda"))
    assert np.abs(on_cpu.astype(int) - on_gpu.astype(int)).max() <= 4
    assert devices.choose_dtype(torch.device("cuda")) == torch.float16
