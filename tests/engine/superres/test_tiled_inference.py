"""Tiled inference gives the same pixels in little memory, and can be cancelled."""

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
from hiresfix.engine.pixels.tiling import TilePart
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
def catalog_network(name: str, dtype: torch.dtype) -> Network:
    weight = find_weights(name)
    assert weight is not None
    return networks.place(superres_files.load(weight), CPU, dtype)


def postprocess(y: Tensor, x: Tensor) -> Tensor:
    return resampling.sharpen(resampling.back_project(y.clamp(0, 1), x, resampling.back_projection_weights(3)), 1)


def upscale(network: Network, rgb: NDArray[np.uint8], tile: int, *, factor: int = 4) -> NDArray[np.int16]:
    result = tiled_inference.upscale(
        network, rgb, tile, factor=factor, postprocess=postprocess, report=lambda fraction: None
    )
    return result.astype(np.int16)


def zero_network() -> Network:
    """Return a network with zero weights, which repeats every pixel of the input."""
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
def test_any_tile_matches_one_tile(width: int, height: int, tile: int, factor: int) -> None:
    network = catalog_network("realesr-animevideov3", BEST)
    rgb = photo(width, height, seed=width)
    with torch.inference_mode():
        tiled, whole = (upscale(network, rgb, size, factor=factor) for size in (tile, 2048))
    assert np.abs(tiled - whole).max() <= 1


@pytest.mark.parametrize("name", ["realesrgan-x4plus-anime", "realsr-df2k"])
def test_strips_of_deep_networks_meet(name: str) -> None:
    network = catalog_network(name, torch.float32)
    rgb = photo(4 * 32 + 2 * 96 + 12, 4)
    assert np.abs(upscale(network, rgb, 32) - upscale(network, rgb, 2048)).max() <= 1


def test_unshuffling_network_takes_any_size_and_tile() -> None:
    torch.manual_seed(0)
    network = RRDBNet(blocks=1, features=8, growth=4, unshuffle=4)
    rgb = photo(371, 41)
    tiled, whole = (upscale(network, rgb, size, factor=1) for size in (33, 2048))
    assert whole.shape == (41, 371, 3)
    assert np.abs(tiled - whole).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tile", [32, 2048])
def test_zero_network_repeats_every_sample_exactly(dtype: type[np.uint8], tile: int) -> None:
    rgb = photo(210, 40).astype(dtype) * dtype(np.iinfo(dtype).max // 255) + dtype(0)
    result = tiled_inference.upscale(
        zero_network(), rgb, tile, factor=4, postprocess=lambda y, x: y, report=lambda fraction: None
    )
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, rgb.repeat(4, 0).repeat(4, 1))


@pytest.mark.parametrize(("width", "height", "tile"), [(300, 90, 32), (40, 200, 32), (24, 20, 64)])
def test_tile_borders_match_strips_and_bands(
    width: int, height: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = zero_network()
    starts: set[tuple[str, int]] = set()
    frame, bands = tiled_inference._frame, tiled_inference._bands

    def record_strip(rgb: Any, strip: TilePart) -> Any:
        starts.add(("column", strip.core.start))
        return frame(rgb, strip)

    def record_bands(*args: Any) -> Any:
        top = -tiled_inference.FRAME
        for band, last in bands(*args):
            starts.add(("row", top))
            top += band.shape[2]
            yield band, last

    monkeypatch.setattr(tiled_inference, "_frame", record_strip)
    monkeypatch.setattr(tiled_inference, "_bands", record_bands)
    upscale(network, photo(width, height), tile)
    rows, columns = tiled_inference.tile_borders(network, height, width, tile)
    inside = {("row", row) for row in rows} | {("column", column) for column in columns}
    assert inside <= starts
    assert {column for kind, column in starts if kind == "column"} == {0, *columns}
    if not columns:
        assert {row for kind, row in starts if kind == "row" and 0 < row < height} == set(rows)


@pytest.mark.parametrize("name", ["realsr-df2k", "realesrgan-x4plus-anime"])
@pytest.mark.parametrize("size", [(24, 20), (1, 1), (3, 20)])
def test_flat_image_stays_flat_to_its_border(name: str, size: tuple[int, int]) -> None:
    rgb = np.full((size[1], size[0], 3), (128, 64, 200), np.uint8)
    assert np.abs(upscale(catalog_network(name, BEST), rgb, 64, factor=2) - rgb[0, 0]).max() <= 1


def test_progress_rises_and_can_cancel() -> None:
    network = catalog_network("realesrgan-x4plus-anime", BEST)
    rgb = photo(24, 20)
    reported: list[float] = []
    tiled_inference.upscale(network, rgb, 32, factor=2, postprocess=postprocess, report=reported.append)
    assert reported == sorted(reported)
    assert reported[-1] == pytest.approx(1)
    assert len(reported) >= 7  # at least once for each block

    def stop(fraction: float) -> None:
        reported.append(fraction)
        if fraction > 0.3:
            raise Cancelled

    reported.clear()
    with pytest.raises(Cancelled):
        tiled_inference.upscale(network, rgb, 32, factor=2, postprocess=postprocess, report=stop)
    assert reported[-1] < 0.6


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_non_finite_values_are_an_error(value: float) -> None:
    network = zero_network()
    network.get_parameter("body.4.bias").fill_(value)
    with pytest.raises(BadResult, match="returned non-finite values"):
        upscale(network, photo(20, 20), 64)


_PEAK = """
import resource, sys, numpy as np, torch
from hiresfix.engine.superres import tiled_inference
from hiresfix.engine.superres.networks import RRDBNet
torch.manual_seed(0)
torch.set_num_threads(1)
rgb = np.random.default_rng(0).integers(0, 256, (int(sys.argv[1]), 600, 3), dtype=np.uint8)
with torch.inference_mode():
    tiled_inference.upscale(RRDBNet(blocks=1, features=4, growth=2), rgb, 128, factor=4,
                            postprocess=lambda y, x: y, report=lambda fraction: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_grows_only_with_the_samples() -> None:
    small, large = (
        int(subprocess.run([sys.executable, "-c", _PEAK, str(rows)], capture_output=True, text=True, check=True).stdout)
        for rows in (200, 1000)
    )
    samples = 800 * 600 * 3 * (1 + 4 * 4) / 1024  # kibibytes of input and result
    float_copy_of_the_result = 800 * 600 * 16 * 3 * 4 / 1024
    assert large - small < samples + float_copy_of_the_result / 3
