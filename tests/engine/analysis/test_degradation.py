"""Looking at a picture: each finding follows its damage and nothing else, and known pictures get known enlargers."""

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
from hiresfix.engine.analysis.degradation import CLEAN, DAMAGED, LINE_ART, Findings, choose, inspect
from hiresfix.models.catalog import find_weights
from tests import ROOT
from tests.sample_images import photo, save

Pixels = NDArray[np.uint8]


PHOTOGRAPH = ROOT / "examples" / "colosseum.png"
CORNERS = ((0, 0), (120, 40), (40, 90))


def scene(side: int = 192, seed: int = 0) -> Pixels:
    """A part of a sharp photograph."""
    left, top = CORNERS[seed]
    return np.asarray(Image.open(PHOTOGRAPH).convert("RGB").crop((left, top, left + side, top + side)))


def drawing(side: int = 192) -> Pixels:
    """Plain colours within black outlines."""
    canvas = Image.new("RGB", (3 * side, 3 * side), "white")
    draw = ImageDraw.Draw(canvas)
    for number, colour in enumerate(("gold", "tomato", "skyblue", "white", "olivedrab", "pink")):
        x, y = 3 * side // 3 * (number % 3), 3 * side // 2 * (number // 3)
        draw.ellipse((x + 20, y + 30, x + side - 20, y + side + 90), fill=colour, outline="black", width=12)
        draw.line((x, y, x + side, y + side), fill="black", width=9)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX))


def compressed(rgb: Pixels, quality: int) -> Pixels:
    """As a JPEG, opened again: what a PNG made of it holds."""
    return np.asarray(Image.open(io.BytesIO(save(rgb, "JPEG", quality=quality))).convert("RGB"))


def grainy(rgb: Pixels, sigma: float) -> Pixels:
    noise = np.random.default_rng(1).normal(0, sigma, rgb.shape)
    return np.asarray(np.clip(np.rint(rgb + noise), 0, 255), np.uint8)


def blurred(rgb: Pixels, sigma: float) -> Pixels:
    return np.asarray(Image.fromarray(rgb).filter(ImageFilter.GaussianBlur(sigma)))


def enlarged(rgb: Pixels, factor: float) -> Pixels:
    height, width = (round(side * factor) for side in rgb.shape[:2])
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))


def rising(values: list[float], *, by: float) -> bool:
    return all(after > before + by for before, after in pairwise(values))


def test_a_sharp_undamaged_picture_is_found_so() -> None:
    found = inspect(scene())
    assert found.jpeg_quality is None
    assert found.blockiness < 0.25
    assert found.noise < 1.5
    assert 0.3 < found.blur < 0.9
    assert found.line_art < 0.3


@pytest.mark.parametrize("seed", range(3))
def test_blockiness_rises_with_compression(seed: int) -> None:
    clean = scene(seed=seed)
    found = [inspect(compressed(clean, quality)).blockiness for quality in (80, 60, 40, 20)]
    assert rising(found, by=0.03)
    assert found[-1] > inspect(clean).blockiness + 0.8


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_measured_in_levels(seed: int) -> None:
    clean = scene(seed=seed)
    found = [inspect(grainy(clean, sigma)).noise for sigma in (5, 10, 15)]
    assert rising([inspect(clean).noise, *found], by=2)
    assert found == pytest.approx([5, 10, 15], rel=0.2)


@pytest.mark.parametrize("soften", [blurred, enlarged], ids=["blurred", "enlarged"])
def test_blur_rises_with_blurring_and_enlarging(soften: Callable[[Pixels, float], Pixels]) -> None:
    amounts = (1.0, 1.5, 2.0, 3.0) if soften is blurred else (1.5, 2.0, 3.0, 4.0)
    found = [inspect(soften(scene(), amount)).blur for amount in amounts]
    assert rising([inspect(scene()).blur, *found], by=0.1)
    if soften is blurred:
        assert found == pytest.approx(amounts, rel=0.35)


def test_noise_does_not_look_like_blocks_nor_blocks_like_noise() -> None:
    assert inspect(grainy(scene(), 15)).blockiness < 0.15
    assert inspect(compressed(scene(), 20)).noise < 1


def test_what_all_colours_share_is_texture() -> None:
    """Fur and gravel fill a picture as grain does; grain of a sensor differs from channel to channel."""
    warm = np.full((96, 96, 3), (180, 130, 90), np.float64)
    shared = np.random.default_rng(2).normal(0, 8, (96, 96, 1))
    furry = np.clip(np.rint(warm + shared), 0, 255).astype(np.uint8)
    assert inspect(furry).noise < 1
    assert inspect(grainy(warm.astype(np.uint8), 8)).noise == pytest.approx(8, rel=0.15)


def test_texture_is_not_noise() -> None:
    """Strong texture over most of the picture, beside a plain sky."""
    rgb = photo(192, 192, seed=3)
    rgb[:80] = np.linspace(120, 180, 80, dtype=np.uint8)[:, None, None]
    assert inspect(rgb[90:]).noise > 2
    assert inspect(rgb).noise < 0.5


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, 5), (7, 1)])
def test_blocks_are_found_wherever_a_crop_put_their_grid(down: int, right: int) -> None:
    whole = compressed(scene(), 40)
    assert inspect(whole[down:, right:]).blockiness == pytest.approx(inspect(whole).blockiness, rel=0.1)


def test_edges_on_the_grid_are_no_blocks() -> None:
    rgb = scene().copy()
    rgb[:, 64:128] = rgb[:, 64:128] // 2 + 100
    assert inspect(rgb).blockiness < degradation.MOST_BLOCKINESS


def test_drawings_are_told_from_photographs() -> None:
    assert inspect(drawing()).line_art > 0.8
    assert inspect(blurred(drawing(), 0.6)).line_art > 0.5
    assert inspect(scene()).line_art < 0.3
    assert inspect(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).line_art < 0.1


@pytest.mark.parametrize("quality", [20, 50, 75, 90, 95])
def test_the_quality_of_a_jpeg_is_read_from_its_tables(quality: int) -> None:
    picture = images.decode(save(scene(64), "JPEG", quality=quality), images.Limits())
    found = inspect(picture.rgb, quantisation=picture.quantisation)
    assert found.jpeg_quality == pytest.approx(quality, abs=1.5)


def test_only_jpegs_carry_tables() -> None:
    assert images.decode(save(scene(64), "PNG"), images.Limits()).quantisation is None
    grey = images.decode(save(scene(64)[..., 0], "JPEG", quality=50), images.Limits())
    assert inspect(grey.rgb, quantisation=grey.quantisation).jpeg_quality == pytest.approx(50, abs=1.5)


@pytest.mark.parametrize(
    ("damaged", "enlarger"),
    [
        (lambda: scene(), CLEAN),
        (lambda: blurred(scene(), 1.0), CLEAN),
        (lambda: compressed(scene(), 40), DAMAGED),
        (lambda: compressed(scene(), 20), DAMAGED),
        (lambda: grainy(scene(), 5), DAMAGED),
        (lambda: compressed(grainy(scene(), 10), 40), DAMAGED),
        (lambda: drawing(), LINE_ART),
    ],
    ids=["clean", "blurred", "jpeg-40", "jpeg-20", "noise-5", "noise-10-jpeg-40", "drawing"],
)
def test_known_pictures_get_the_known_enlarger(damaged: Callable[[], Pixels], enlarger: str) -> None:
    choice = choose(inspect(damaged()))
    assert choice.enlarger == enlarger, choice.because
    assert find_weights(choice.enlarger) is not None
    assert choice.because


def test_what_may_be_drawn_is_left_to_the_network_that_does_both() -> None:
    unsure = Findings(jpeg_quality=None, blockiness=0.0, noise=0.0, blur=0.6, line_art=0.4)
    assert choose(unsure).enlarger == DAMAGED


def test_the_tables_of_a_jpeg_decide_where_pixels_show_nothing() -> None:
    plain = np.full((64, 64, 3), 120, np.uint8)
    picture = images.decode(save(plain, "JPEG", quality=30), images.Limits())
    assert choose(inspect(plain)).enlarger == CLEAN
    assert choose(inspect(picture.rgb, quantisation=picture.quantisation)).enlarger == DAMAGED


def test_sixteen_bit_and_grey_pictures_give_the_same_findings() -> None:
    rgb = compressed(scene(), 50)
    deep = inspect(rgb.astype(np.uint16) * 257)
    assert deep.to_dict() == pytest.approx(inspect(rgb).to_dict(), abs=0.02)
    grey = rgb[..., :1].repeat(3, axis=2)
    assert inspect(grainy(grey[..., :1], 8).repeat(3, axis=2)).noise == pytest.approx(8, rel=0.15)
    assert inspect(grey).blockiness > 0.4


def test_what_transparency_hides_does_not_change_the_choice() -> None:
    rgb = scene()
    alpha = np.zeros((192, 192), np.uint8)
    alpha[32:160, 32:160] = 255
    for damaged, enlarger in ((rgb, CLEAN), (compressed(rgb, 30), DAMAGED), (grainy(rgb, 8), DAMAGED)):
        assert choose(inspect(images.bleed(damaged, alpha), alpha=alpha)).enlarger == enlarger
    nothing = np.zeros_like(alpha)
    assert inspect(grainy(rgb, 8), alpha=nothing).noise == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (1, 500), (16, 16), (17, 2000), (3000, 9)])
def test_tiny_and_thin_pictures_are_answered(shape: tuple[int, int], dtype: type) -> None:
    top = np.iinfo(dtype).max
    pictures: list[NDArray[Any]] = [np.full((*shape, 3), value, dtype) for value in (0, top)]
    for rgb in (*pictures, photo(shape[1], shape[0]).astype(dtype)):
        found = inspect(rgb)
        assert all(value is None or np.isfinite(value) for value in found.to_dict().values())
        assert choose(found).enlarger in (CLEAN, DAMAGED, LINE_ART)


def test_a_plain_picture_has_nothing_to_find() -> None:
    assert inspect(np.full((100, 100, 3), 77, np.uint8)) == Findings(
        jpeg_quality=None, blockiness=0.0, noise=0.0, blur=0.0, line_art=0.0
    )


def test_the_cost_does_not_grow_with_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MP are not looked at longer than the 1 MP that is the most."""
    seen = 0

    def counted(window: degradation._Window) -> Any:
        nonlocal seen
        seen += window.luma.size
        return grain(window)

    grain = degradation._grain
    monkeypatch.setattr(degradation, "_grain", counted)
    large = np.tile(compressed(scene(), 30), (21, 21, 1))
    start = time.process_time()
    found = inspect(large)
    assert time.process_time() - start < 20
    assert seen <= 1 << 20
    assert found.blockiness == pytest.approx(inspect(large[:960, :960]).blockiness, rel=0.1)


def test_findings_become_plain_json() -> None:
    found = inspect(compressed(scene(96), 40)).to_dict()
    assert set(found) == {"jpeg_quality", "blockiness", "noise", "blur", "line_art"}
    assert all(value is None or type(value) is float for value in found.values())
