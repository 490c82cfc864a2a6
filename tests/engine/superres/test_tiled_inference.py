"""A picture through a network in parts: the same pixels, little memory, and stopping when asked to."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from hiresfix.engine import devices
from hiresfix.engine.pixels import resampling
from hiresfix.engine.pixels.tiling import Part
from hiresfix.engine.superres import networks, tiled_inference
from hiresfix.engine.superres.networks import Network, RRDBNet, SRVGGNetCompact
from hiresfix.engine.weights import superres_files
from hiresfix.errors import BadResult, Cancelled
from hiresfix.models.catalog import find_weights
from tests.sample_images import photo

CPU = torch.device("cpu")
BEST = devices.choose_dtype(CPU)


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


@functools.cache
def catalogued(name: str, dtype: torch.dtype) -> Network:
    weight = find_weights(name)
    assert weight is not None
    return networks.place(superres_files.load(weight), CPU, dtype)


def followed(y: Tensor, x: Tensor) -> Tensor:
    return resampling.sharpen(resampling.follow(y.clamp(0, 1), x, resampling.rounds(3)), 1)


def enlarge(network: Network, rgb: NDArray[np.uint8], tile: int, *, factor: int = 4) -> NDArray[np.int16]:
    result = tiled_inference.enlarge(network, rgb, tile, factor=factor, finish=followed, report=lambda fraction: None)
    return result.astype(np.int16)


def copying() -> Network:
    """Weights of zero: what comes out is the input with every pixel repeated."""
    network = SRVGGNetCompact(convs=1, features=4)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    return network


@settings(deadline=None, max_examples=8)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 40),
    tile=st.sampled_from([32, 33, 48]),
    factor=st.sampled_from([1, 2, 4]),
)
def test_any_tile_gives_what_one_tile_gives_within_one_level(width: int, height: int, tile: int, factor: int) -> None:
    network = catalogued("realesr-animevideov3", BEST)
    rgb = photo(width, height, seed=width)
    with torch.inference_mode():
        tiled, whole = (enlarge(network, rgb, size, factor=factor) for size in (tile, 2048))
    assert np.abs(tiled - whole).max() <= 1


@pytest.mark.parametrize("name", ["realesrgan-x4plus-anime", "realsr-df2k"])
def test_strips_of_a_deep_network_meet_within_one_level(name: str) -> None:
    network = catalogued(name, torch.float32)
    rgb = photo(4 * 32 + 2 * 96 + 12, 4)
    assert np.abs(enlarge(network, rgb, 32) - enlarge(network, rgb, 2048)).max() <= 1


def test_a_network_that_folds_pixels_together_takes_any_size_in_any_tile() -> None:
    torch.manual_seed(0)
    network = RRDBNet(blocks=1, features=8, growth=4, unshuffle=4)
    rgb = photo(371, 41)
    tiled, whole = (enlarge(network, rgb, size, factor=1) for size in (33, 2048))
    assert whole.shape == (41, 371, 3)
    assert np.abs(tiled - whole).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tile", [32, 2048])
def test_a_network_that_adds_nothing_repeats_every_sample_exactly(dtype: type[np.uint8], tile: int) -> None:
    rgb = photo(210, 40).astype(dtype) * dtype(np.iinfo(dtype).max // 255) + dtype(0)
    result = tiled_inference.enlarge(
        copying(), rgb, tile, factor=4, finish=lambda y, x: y, report=lambda fraction: None
    )
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, rgb.repeat(4, 0).repeat(4, 1))


@pytest.mark.parametrize(("width", "height", "tile"), [(300, 90, 32), (40, 200, 32), (24, 20, 64)])
def test_borders_are_where_strips_and_bands_begin(
    width: int, height: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = copying()
    begun: set[tuple[str, int]] = set()
    framed, bands = tiled_inference._framed, tiled_inference._bands

    def note_strip(rgb: Any, strip: Part) -> Any:
        begun.add(("column", strip.core.start))
        return framed(rgb, strip)

    def note_bands(*args: Any) -> Any:
        top = -tiled_inference.FRAME
        for band, last in bands(*args):
            begun.add(("row", top))
            top += band.shape[2]
            yield band, last

    monkeypatch.setattr(tiled_inference, "_framed", note_strip)
    monkeypatch.setattr(tiled_inference, "_bands", note_bands)
    enlarge(network, photo(width, height), tile)
    rows, columns = tiled_inference.borders(network, height, width, tile)
    inside = {("row", row) for row in rows} | {("column", column) for column in columns}
    assert inside <= begun
    assert {column for kind, column in begun if kind == "column"} == {0, *columns}
    if not columns:
        assert {row for kind, row in begun if kind == "row" and 0 < row < height} == set(rows)


@pytest.mark.parametrize("name", ["realsr-df2k", "realesrgan-x4plus-anime"])
@pytest.mark.parametrize("size", [(24, 20), (1, 1), (3, 20)])
def test_a_flat_picture_stays_flat_to_its_very_border(name: str, size: tuple[int, int]) -> None:
    rgb = np.full((size[1], size[0], 3), (128, 64, 200), np.uint8)
    assert np.abs(enlarge(catalogued(name, BEST), rgb, 64, factor=2) - rgb[0, 0]).max() <= 1


def test_progress_rises_to_the_end_and_stops_the_work_when_it_raises() -> None:
    network = catalogued("realesrgan-x4plus-anime", BEST)
    rgb = photo(24, 20)
    told: list[float] = []
    tiled_inference.enlarge(network, rgb, 32, factor=2, finish=followed, report=told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)
    assert len(told) >= 7  # once a block at least

    def stop(fraction: float) -> None:
        told.append(fraction)
        if fraction > 0.3:
            raise Cancelled

    told.clear()
    with pytest.raises(Cancelled):
        tiled_inference.enlarge(network, rgb, 32, factor=2, finish=followed, report=stop)
    assert told[-1] < 0.6


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_values_that_are_no_numbers_are_an_error_not_a_picture(value: float) -> None:
    network = copying()
    network.get_parameter("body.4.bias").fill_(value)
    with pytest.raises(BadResult, match="no numbers"):
        enlarge(network, photo(20, 20), 64)


_PEAK = """
import resource, sys, numpy as np, torch
from hiresfix.engine import enlarging
from hiresfix.engine.esrgan import RRDBNet
torch.manual_seed(0)
torch.set_num_threads(1)
rgb = np.random.default_rng(0).integers(0, 256, (int(sys.argv[1]), 600, 3), dtype=np.uint8)
with torch.inference_mode():
    enlarging.enlarge(RRDBNet(blocks=1, features=4, growth=2), rgb, 128, factor=4,
                      finish=lambda y, x: y, report=lambda fraction: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_larger_picture_takes_no_more_memory_than_its_own_samples() -> None:
    small, large = (
        int(subprocess.run([sys.executable, "-c", _PEAK, str(rows)], capture_output=True, text=True, check=True).stdout)
        for rows in (200, 1000)
    )
    samples = 800 * 600 * 3 * (1 + 4 * 4) / 1024  # kibibytes of input and result
    float_copy_of_the_result = 800 * 600 * 16 * 3 * 4 / 1024
    assert large - small < samples + float_copy_of_the_result / 3
