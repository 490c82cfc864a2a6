"""Each measure of degradation follows its own damage only, and known damage selects the known network."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from hiresfix import images
from hiresfix.engine.analysis import degradation
from hiresfix.engine.analysis.degradation import (
    CLEAN_NETWORK,
    DAMAGED_NETWORK,
    LINE_ART_NETWORK,
    Degradation,
    choose_network,
    detect,
)
from hiresfix.models.catalog import find_weights
from tests import ROOT
from tests.sample_images import photo, save

ByteImage = NDArray[np.uint8]

PHOTO = ROOT / "examples" / "colosseum.png"
CORNERS = ((0, 0), (120, 40), (40, 90))


def scene(side: int = 192, seed: int = 0) -> ByteImage:
    """Return a part of a sharp photo."""
    left, top = CORNERS[seed]
    return np.asarray(Image.open(PHOTO).convert("RGB").crop((left, top, left + side, top + side)))


def drawing(side: int = 192) -> ByteImage:
    """Return a drawing of plain colours within black outlines."""
    canvas = Image.new("RGB", (3 * side, 3 * side), "white")
    draw = ImageDraw.Draw(canvas)
    for number, colour in enumerate(("gold", "tomato", "skyblue", "white", "olivedrab", "pink")):
        x, y = 3 * side // 3 * (number % 3), 3 * side // 2 * (number // 3)
        draw.ellipse((x + 20, y + 30, x + side - 20, y + side + 90), fill=colour, outline="black", width=12)
        draw.line((x, y, x + side, y + side), fill="black", width=9)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX))


def compressed(rgb: ByteImage, quality: int) -> ByteImage:
    """Compress as a JPEG and decode it again."""
    return np.asarray(Image.open(io.BytesIO(save(rgb, "JPEG", quality=quality))).convert("RGB"))


def grainy(rgb: ByteImage, sigma: float) -> ByteImage:
    noise = np.random.default_rng(1).normal(0, sigma, rgb.shape)
    return np.asarray(np.clip(np.rint(rgb + noise), 0, 255), np.uint8)


def blurred(rgb: ByteImage, sigma: float) -> ByteImage:
    return np.asarray(Image.fromarray(rgb).filter(ImageFilter.GaussianBlur(sigma)))


def upscaled(rgb: ByteImage, factor: float) -> ByteImage:
    height, width = (round(side * factor) for side in rgb.shape[:2])
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))


def rising(values: list[float], *, by: float) -> bool:
    return all(after > before + by for before, after in pairwise(values))


def test_sharp_undamaged_image_measures_clean() -> None:
    result = detect(scene())
    assert result.jpeg_quality is None
    assert result.blockiness < 0.25
    assert result.noise < 1.5
    assert 0.3 < result.blur < 0.9
    assert result.line_art < 0.3


@pytest.mark.parametrize("seed", range(3))
def test_blockiness_rises_with_compression(seed: int) -> None:
    clean = scene(seed=seed)
    results = [detect(compressed(clean, quality)).blockiness for quality in (80, 60, 40, 20)]
    assert rising(results, by=0.03)
    assert results[-1] > detect(clean).blockiness + 0.8


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_measured_in_levels(seed: int) -> None:
    clean = scene(seed=seed)
    results = [detect(grainy(clean, sigma)).noise for sigma in (5, 10, 15)]
    assert rising([detect(clean).noise, *results], by=2)
    assert results == pytest.approx([5, 10, 15], rel=0.2)


@pytest.mark.parametrize("soften", [blurred, upscaled], ids=["blurred", "upscaled"])
def test_blur_rises_with_blurring_and_upscaling(soften: Callable[[ByteImage, float], ByteImage]) -> None:
    amounts = (1.0, 1.5, 2.0, 3.0) if soften is blurred else (1.5, 2.0, 3.0, 4.0)
    results = [detect(soften(scene(), amount)).blur for amount in amounts]
    assert rising([detect(scene()).blur, *results], by=0.1)
    if soften is blurred:
        assert results == pytest.approx(amounts, rel=0.35)


def test_noise_and_blocks_are_not_confused() -> None:
    assert detect(grainy(scene(), 15)).blockiness < 0.15
    assert detect(compressed(scene(), 20)).noise < 1


def test_grain_shared_by_channels_is_texture() -> None:
    """Fur and gravel fill an image like grain does, but grain of a sensor differs between channels."""
    warm = np.full((96, 96, 3), (180, 130, 90), np.float64)
    shared = np.random.default_rng(2).normal(0, 8, (96, 96, 1))
    furry = np.clip(np.rint(warm + shared), 0, 255).astype(np.uint8)
    assert detect(furry).noise < 1
    assert detect(grainy(warm.astype(np.uint8), 8)).noise == pytest.approx(8, rel=0.15)


def test_texture_is_not_noise() -> None:
    """The image has strong texture beside a plain sky."""
    rgb = photo(192, 192, seed=3)
    rgb[:80] = np.linspace(120, 180, 80, dtype=np.uint8)[:, None, None]
    assert detect(rgb[90:]).noise > 2
    assert detect(rgb).noise < 0.5


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, 5), (7, 1)])
def test_blocks_are_found_after_any_crop(down: int, right: int) -> None:
    whole = compressed(scene(), 40)
    assert detect(whole[down:, right:]).blockiness == pytest.approx(detect(whole).blockiness, rel=0.1)


def test_edges_on_the_grid_are_not_blocks() -> None:
    rgb = scene().copy()
    rgb[:, 64:128] = rgb[:, 64:128] // 2 + 100
    assert detect(rgb).blockiness < degradation.MAX_BLOCKINESS


def test_drawings_differ_from_photos() -> None:
    assert detect(drawing()).line_art > 0.8
    assert detect(blurred(drawing(), 0.6)).line_art > 0.5
    assert detect(scene()).line_art < 0.3
    assert detect(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).line_art < 0.1


@pytest.mark.parametrize("quality", [20, 50, 75, 90, 95])
def test_jpeg_quality_comes_from_its_tables(quality: int) -> None:
    image = images.decode(save(scene(64), "JPEG", quality=quality), images.ImageLimits())
    result = detect(image.rgb, quantisation=image.quantisation)
    assert result.jpeg_quality == pytest.approx(quality, abs=1.5)


def test_only_jpegs_carry_tables() -> None:
    assert images.decode(save(scene(64), "PNG"), images.ImageLimits()).quantisation is None
    grey = images.decode(save(scene(64)[..., 0], "JPEG", quality=50), images.ImageLimits())
    assert detect(grey.rgb, quantisation=grey.quantisation).jpeg_quality == pytest.approx(50, abs=1.5)


@pytest.mark.parametrize(
    ("damaged", "network"),
    [
        (lambda: scene(), CLEAN_NETWORK),
        (lambda: blurred(scene(), 1.0), CLEAN_NETWORK),
        (lambda: compressed(scene(), 40), DAMAGED_NETWORK),
        (lambda: compressed(scene(), 20), DAMAGED_NETWORK),
        (lambda: grainy(scene(), 5), DAMAGED_NETWORK),
        (lambda: compressed(grainy(scene(), 10), 40), DAMAGED_NETWORK),
        (lambda: drawing(), LINE_ART_NETWORK),
    ],
    ids=["clean", "blurred", "jpeg-40", "jpeg-20", "noise-5", "noise-10-jpeg-40", "drawing"],
)
def test_known_damage_selects_the_known_network(damaged: Callable[[], ByteImage], network: str) -> None:
    choice = choose_network(detect(damaged()))
    assert choice.network == network, choice.reason
    assert find_weights(choice.network) is not None
    assert choice.reason


def test_possible_line_art_gets_the_general_network() -> None:
    unsure = Degradation(jpeg_quality=None, blockiness=0.0, noise=0.0, blur=0.6, line_art=0.4)
    assert choose_network(unsure).network == DAMAGED_NETWORK


def test_jpeg_tables_decide_on_plain_images() -> None:
    plain = np.full((64, 64, 3), 120, np.uint8)
    image = images.decode(save(plain, "JPEG", quality=30), images.ImageLimits())
    assert choose_network(detect(plain)).network == CLEAN_NETWORK
    assert choose_network(detect(image.rgb, quantisation=image.quantisation)).network == DAMAGED_NETWORK


def test_sixteen_bit_and_grey_images_measure_alike() -> None:
    rgb = compressed(scene(), 50)
    deep = detect(rgb.astype(np.uint16) * 257)
    assert deep.to_dict() == pytest.approx(detect(rgb).to_dict(), abs=0.02)
    grey = rgb[..., :1].repeat(3, axis=2)
    assert detect(grainy(grey[..., :1], 8).repeat(3, axis=2)).noise == pytest.approx(8, rel=0.15)
    assert detect(grey).blockiness > 0.4


def test_hidden_pixels_do_not_change_the_choice() -> None:
    rgb = scene()
    alpha = np.zeros((192, 192), np.uint8)
    alpha[32:160, 32:160] = 255
    for damaged, network in (
        (rgb, CLEAN_NETWORK),
        (compressed(rgb, 30), DAMAGED_NETWORK),
        (grainy(rgb, 8), DAMAGED_NETWORK),
    ):
        assert choose_network(detect(images.bleed(damaged, alpha), alpha=alpha)).network == network
    nothing = np.zeros_like(alpha)
    assert detect(grainy(rgb, 8), alpha=nothing).noise == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (1, 500), (16, 16), (17, 2000), (3000, 9)])
def test_tiny_and_thin_images_are_measured(shape: tuple[int, int], dtype: type) -> None:
    top = np.iinfo(dtype).max
    plain: list[NDArray[Any]] = [np.full((*shape, 3), value, dtype) for value in (0, top)]
    for rgb in (*plain, photo(shape[1], shape[0]).astype(dtype)):
        result = detect(rgb)
        assert all(value is None or np.isfinite(value) for value in result.to_dict().values())
        assert choose_network(result).network in (CLEAN_NETWORK, DAMAGED_NETWORK, LINE_ART_NETWORK)


def test_plain_image_has_no_degradation() -> None:
    assert detect(np.full((100, 100, 3), 77, np.uint8)) == Degradation(
        jpeg_quality=None, blockiness=0.0, noise=0.0, blur=0.0, line_art=0.0
    )


def test_cost_does_not_grow_with_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of 16 MP takes no longer than the maximum of 1 MP."""
    seen = 0

    def counting(window: degradation._Window) -> Any:
        nonlocal seen
        seen += window.luma.size
        return grain(window)

    grain = degradation._grain
    monkeypatch.setattr(degradation, "_grain", counting)
    large = np.tile(compressed(scene(), 30), (21, 21, 1))
    start = time.process_time()
    result = detect(large)
    assert time.process_time() - start < 20
    assert seen <= 1 << 20
    assert result.blockiness == pytest.approx(detect(large[:960, :960]).blockiness, rel=0.1)


def test_degradation_becomes_plain_json() -> None:
    result = detect(compressed(scene(96), 40)).to_dict()
    assert set(result) == {"jpeg_quality", "blockiness", "noise", "blur", "line_art"}
    assert all(value is None or type(value) is float for value in result.values())
