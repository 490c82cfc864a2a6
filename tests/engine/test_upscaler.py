"""The upscaler keeps size, depth and transparency, describes what was done, and refuses bad results."""

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
from hiresfix.engine.progress import ProgressCallback
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
CREATIVE = Recipe(enlarger=QUICK, engine=Engine.OFFLINE)


@pytest.fixture(scope="module")
def engine() -> Upscaler:
    return Upscaler("cpu")


def silent(fraction: float) -> None:
    pass


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (100, 1), (1, 37), (3, 5), (21, 13)])
def test_result_is_exactly_scale_times_the_input(engine: Upscaler, scale: int, width: int, height: int) -> None:
    image = DecodedImage(rgb=photo(width, height))
    result = engine.run(image, replace(FAITHFUL, scale=scale), silent).image
    assert result.size == (width * scale, height * scale)
    assert result.rgb.dtype == np.uint8


@pytest.mark.parametrize("recipe", [FAITHFUL, CREATIVE], ids=["faithful", "creative"])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_result_resembles_input_and_not_interpolation(engine: Upscaler, recipe: Recipe, scale: int) -> None:
    image = DecodedImage(rgb=photo(32, 24, seed=2))
    upscaled = engine.run(image, replace(recipe, scale=scale), silent)
    shrunk = upscaled.image.rgb.reshape(24, scale, 32, scale, 3).mean((1, 3))
    assert np.abs(shrunk - image.rgb).mean() < 6
    assert upscaled.metadata["quality"]["drift_db"] > 30
    assert np.abs(upscaled.image.rgb.astype(int) - image.rgb.repeat(scale, 0).repeat(scale, 1)).mean() > 1


def test_sixteen_bits_stay_sixteen_bits(engine: Upscaler) -> None:
    ramp = np.linspace(20000, 21000, 24 * 20).reshape(20, 24, 1) * np.ones(3)
    result = engine.run(DecodedImage(rgb=ramp.round().astype(np.uint16)), FAITHFUL, silent).image.rgb
    assert result.dtype == np.uint16
    assert len(np.unique(result)) > 200  # five levels in eight bits
    assert 19500 < result.min() < result.max() < 21500


def disc(side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a red disc on transparent white, which must not be seen."""
    y, x = np.mgrid[:side, :side] + 0.5
    distance = np.hypot(y - side / 2, x - side / 2)
    alpha = ((side / 3 - distance).clip(0, 1) * 255).round().astype(np.uint8)
    rgb = np.where(alpha[..., None] > 0, [220, 20, 30], [255, 255, 255]).astype(np.uint8)
    return rgb, alpha


@pytest.mark.parametrize(
    "recipe", [FAITHFUL, CREATIVE, replace(FAITHFUL, sharpen=4.0)], ids=["faithful", "creative", "sharp"]
)
def test_transparent_edges_get_no_fringe(engine: Upscaler, recipe: Recipe) -> None:
    rgb, alpha = disc(36)
    result = engine.run(DecodedImage(rgb=rgb, alpha=alpha), recipe, silent).image
    assert result.alpha is not None
    assert result.alpha.shape == result.rgb.shape[:2] == (72, 72)
    cover = result.alpha[..., None] / 255
    for ground in (0, 255):
        composite = result.rgb * cover + ground * (1 - cover)
        expected = np.array([220, 20, 30]) * cover + ground * (1 - cover)
        assert np.abs(composite - expected).max() < 14
    inside = result.alpha == 255
    assert inside.sum() == pytest.approx((alpha == 255).sum() * 4, rel=0.1)


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: weight.name)
def test_nothing_moves_by_a_tenth_of_a_pixel(engine: Upscaler, weight: WeightFile) -> None:
    """The networks move shapes by up to half a pixel of the result; back-projection corrects it."""
    y, x = np.mgrid[:25, :27]
    blob = np.exp(-((y - 11.3) ** 2 + (x - 14.6) ** 2) / (2 * 3.0**2))
    rgb = (30 + 200 * blob[..., None] * np.ones(3)).round().astype(np.uint8)
    for scale in (2, 4):
        result = engine.run(DecodedImage(rgb=rgb), Recipe(enlarger=weight.name, scale=scale), silent).image.rgb
        assert np.abs(centre(result) - centre(rgb) * scale).max() < 0.1


def centre(pixels: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return (row, column) of the centre of the bright area, in pixels from the upper left corner."""
    mass = (pixels.astype(np.float64).mean(2) - 60).clip(0)
    rows, columns = np.mgrid[: mass.shape[0], : mass.shape[1]] + 0.5
    return np.asarray([(rows * mass).sum() / mass.sum(), (columns * mass).sum() / mass.sum()])


def test_image_metadata_is_kept(engine: Upscaler) -> None:
    image = DecodedImage(
        rgb=photo(6, 5), icc=b"profile", exif=b"II*\0", xmp=b"<x/>", dpi=(300.0, 300.0), notes=("A note.",)
    )
    result = engine.run(image, FAITHFUL, silent).image
    assert replace(result, rgb=image.rgb) is not image
    for name in ("icc", "exif", "xmp", "dpi", "notes", "grey", "alpha"):
        assert getattr(result, name) == getattr(image, name)


def test_metadata_is_plain_json(engine: Upscaler) -> None:
    metadata = engine.run(DecodedImage(rgb=photo(12, 10)), replace(FAITHFUL, tile=64), silent).metadata
    assert json.loads(json.dumps(metadata)) == metadata
    weight = next(weight for weight in WEIGHTS if weight.name == QUICK)
    assert metadata["weights"] == [{"name": QUICK, "sha256": weight.sha256}]
    assert metadata["device"] == "cpu"
    assert metadata["dtype"] in ("float32", "bfloat16")
    assert metadata["tile"] == 64
    assert metadata["warnings"] == []
    assert metadata["engine"].startswith("faithful")


@pytest.mark.parametrize("recipe", [FAITHFUL, CREATIVE], ids=["faithful", "creative"])
def test_metadata_has_every_quality_metric(engine: Upscaler, recipe: Recipe) -> None:
    """The image is wide enough to be cut into strips, so that there are borders to judge."""
    wide = replace(recipe, tile=32, resemblance=0.6)
    quality = engine.run(DecodedImage(rgb=photo(300, 80)), wide, silent).metadata["quality"]
    assert set(quality) == {field.name for field in fields(Quality)}
    assert quality["drift_db"] >= 34
    assert 0 < quality["ciede2000_mean"] <= 1
    assert quality["ciede2000_mean"] < quality["ciede2000_p95"] <= 3
    assert 0 < quality["shift_px"] <= 0.1
    # Few segments, of an image made of chance: a real seam is several times that.
    assert quality["seam_ratio"] <= 1.1
    assert quality["seam_ratio_stretched"] <= 1.1
    assert quality["alive"] is True


def test_untiled_image_has_no_seam_ratio(engine: Upscaler) -> None:
    assert engine.run(DecodedImage(rgb=photo(24, 20)), FAITHFUL, silent).metadata["quality"]["seam_ratio"] is None


def test_more_resemblance_means_less_drift(engine: Upscaler) -> None:
    image = DecodedImage(rgb=photo(40, 30))
    drifts = [
        engine.run(image, replace(CREATIVE, resemblance=value), silent).metadata["quality"]["drift_db"]
        for value in (0.0, 0.3, 0.6, 1.0, 2.0, 3.0)
    ]
    assert drifts == sorted(drifts)
    assert drifts[-1] > drifts[0] + 6


def test_sharpen_steepens_the_result(engine: Upscaler) -> None:
    def roughness(strength: float) -> float:
        rgb = engine.run(DecodedImage(rgb=photo(24, 24)), replace(FAITHFUL, sharpen=strength), silent).image.rgb
        return float(np.abs(np.diff(rgb.astype(int), axis=1)).mean())

    assert roughness(0) < roughness(2) < roughness(10)


def test_faithful_result_ignores_the_seed(engine: Upscaler) -> None:
    image = DecodedImage(rgb=photo(20, 20))
    first, again, seeded = (engine.run(image, replace(FAITHFUL, seed=seed), silent).image.rgb for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, seeded)


@pytest.mark.parametrize("scale", [2, 8])
def test_progress_rises_from_zero_to_one(engine: Upscaler, scale: int) -> None:
    reported: list[float] = []
    engine.run(DecodedImage(rgb=photo(12, 40)), replace(FAITHFUL, scale=scale, tile=32), reported.append)
    assert reported[0] == 0
    assert reported[-1] == 1
    assert reported == sorted(reported)
    assert len(set(reported)) > 4


def test_report_can_stop_the_run(engine: Upscaler) -> None:
    def stop(fraction: float) -> None:
        if fraction > 0:
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.run(DecodedImage(rgb=photo(20, 20)), FAITHFUL, stop)


def test_out_of_memory_halves_the_tile(engine: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = tiled_inference.upscale

    def scarce(network: object, rgb: object, tile: int, **rest: object) -> object:
        if tile > 64:
            cast(ProgressCallback, rest["report"])(0.4)  # it had come that far
            raise torch.OutOfMemoryError("out of memory")
        return genuine(network, rgb, tile, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tiled_inference, "upscale", scarce)
    reported: list[float] = []
    upscaled = engine.run(DecodedImage(rgb=photo(20, 20)), FAITHFUL, reported.append)
    assert upscaled.metadata["tile"] == 64
    assert upscaled.image.size == (40, 40)
    assert reported == sorted(reported)


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


def test_black_result_is_an_error(engine: Upscaler, blackening: WeightFile) -> None:
    recipe = Recipe(enlarger=blackening.name, resemblance=0.0)
    with pytest.raises(BadResult, match="came out black"):
        engine.run(DecodedImage(rgb=photo(16, 16)), recipe, silent)
    black = engine.run(DecodedImage(rgb=np.zeros((16, 16, 3), np.uint8)), recipe, silent)
    assert not black.image.rgb.any()


def test_single_colour_result_is_an_error(engine: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    def grey(network: object, rgb: NDArray[np.uint8], *_: object, factor: int, **__: object) -> object:
        return np.full((rgb.shape[0] * factor, rgb.shape[1] * factor, 3), 128, np.uint8), 256

    monkeypatch.setattr(offline, "run_pass", grey)
    recipe = replace(FAITHFUL, least_drift_db=0.0)
    with pytest.raises(BadResult, match="one colour"):
        engine.run(DecodedImage(rgb=photo(16, 16)), recipe, silent)
    assert engine.run(DecodedImage(rgb=np.full((16, 16, 3), 120, np.uint8)), recipe, silent).image.size == (32, 32)


def test_excessive_drift_is_an_error(engine: Upscaler) -> None:
    """Where the recipe draws the line; a grain so faint that it may be smoothed away is no sign of failure."""
    recipe = Recipe(enlarger="realesr-animevideov3", resemblance=0.0, least_drift_db=60.0)
    with pytest.raises(BadResult, match="dB from the input; the minimum is 60 dB"):
        engine.run(DecodedImage(rgb=photo(16, 16)), recipe, silent)
    engine.run(DecodedImage(rgb=photo(16, 16)), replace(recipe, least_drift_db=12.0), silent)
    flat = np.full((16, 16, 3), 120, np.uint8)
    flat[3, 4] = 121
    engine.run(DecodedImage(rgb=flat), replace(recipe, least_drift_db=12.0), silent)


@pytest.mark.parametrize(
    ("scale", "network_scale", "factors"),
    [(1, 4, [1]), (2, 4, [2]), (4, 4, [4]), (8, 4, [4, 2]), (8, 2, [2, 2, 2]), (1, 1, [1])],
)
def test_pass_factors_never_exceed_the_network(scale: int, network_scale: int, factors: list[int]) -> None:
    assert upscaler.pass_factors(scale, network_scale) == factors


def test_network_of_scale_one_cannot_upscale() -> None:
    with pytest.raises(WeightsError, match="scale 1 cannot upscale 2 times"):
        upscaler.pass_factors(2, 1)


@pytest.mark.gpu
def test_gpu_matches_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    image, recipe = DecodedImage(rgb=photo(200, 120)), Recipe(resemblance=0.6, tile=64)
    on_cpu, on_gpu = (Upscaler(device).run(image, recipe, silent).image.rgb for device in ("cpu", "cuda"))
    assert np.abs(on_cpu.astype(int) - on_gpu.astype(int)).max() <= 4
    assert devices.choose_dtype(torch.device("cuda")) == torch.float16
