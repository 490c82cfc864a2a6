"""The networks compute the published formulas, and bands of rows give the same as the whole image."""

from __future__ import annotations

import functools
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from hiresfix.engine import devices
from hiresfix.engine.pixels import resampling
from hiresfix.engine.superres import networks
from hiresfix.engine.superres.networks import Network, RRDBNet, SRVGGNetCompact
from hiresfix.engine.weights import superres_files
from hiresfix.models.catalog import WEIGHTS, WeightFile, find_weights
from tests.sample_images import photo

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


def image(width: int, height: int, *, seed: int = 0) -> Tensor:
    return resampling.to_tensor(photo(width, height, seed=seed), CPU)


def small_rrdb(*, ups: int = 2, unshuffle: int = 1) -> RRDBNet:
    torch.manual_seed(1)
    return RRDBNet(blocks=2, features=8, growth=4, ups=ups, unshuffle=unshuffle).eval()


def small_srvgg() -> SRVGGNetCompact:
    torch.manual_seed(1)
    return SRVGGNetCompact(convs=3, features=8, scale=4).eval()


@functools.cache
def catalog_network(name: str, dtype: torch.dtype = torch.float32) -> Network:
    weight = find_weights(name)
    assert weight is not None
    return networks.place(superres_files.load(weight), CPU, dtype)


def in_bands(network: Network, x: Tensor, cuts: list[int]) -> Tensor:
    edges = [0, *cuts, x.shape[2]]
    bands = [(x[:, :, top:end], end == x.shape[2]) for top, end in pairwise(edges)]
    return torch.cat(list(networks.stream(network, bands, lambda work: None)), 2)


def as_published(net: RRDBNet, x: Tensor) -> Tensor:
    """Compute the formulas of the paper with ordinary padded convolutions, as an oracle for the banded ones."""

    def relu(y: Tensor) -> Tensor:
        return functional.leaky_relu(y, 0.2)

    def dense(block: networks.DenseBlock, x: Tensor) -> Tensor:
        x1 = relu(block.conv1(x))
        x2 = relu(block.conv2(torch.cat((x, x1), 1)))
        x3 = relu(block.conv3(torch.cat((x, x1, x2), 1)))
        x4 = relu(block.conv4(torch.cat((x, x1, x2, x3), 1)))
        return torch.add(x, block.conv5(torch.cat((x, x1, x2, x3, x4), 1)), alpha=0.2)

    first = net.conv_first(functional.pixel_unshuffle(x, net.unshuffle))
    y = first
    for block in net.body:
        assert isinstance(block, networks.RRDB)
        y = y + 0.2 * dense(block.rdb3, dense(block.rdb2, dense(block.rdb1, y)))
    y = first + net.conv_body(y)
    for number in (1, 2):
        up = net.get_submodule(f"conv_up{number}")
        y = relu(up(y.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    last: Tensor = net.conv_last(relu(net.conv_hr(y)))
    return last


@pytest.mark.parametrize("unshuffle", [1, 2])
def test_rrdbnet_computes_the_published_formulas(unshuffle: int) -> None:
    net, x = small_rrdb(unshuffle=unshuffle), image(12, 14)
    torch.testing.assert_close(net(x), as_published(net, x), atol=1e-5, rtol=1e-4)


def test_srvgg_computes_the_published_formulas() -> None:
    net, x = small_srvgg(), image(9, 7)
    y = functional.pixel_shuffle(nn.Sequential(*net.body)(x), 4)
    torch.testing.assert_close(net(x), y + x.repeat_interleave(4, 2).repeat_interleave(4, 3), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("ups", "unshuffle", "scale"), [(2, 1, 4), (1, 1, 2), (0, 1, 1), (2, 2, 2), (2, 4, 1)])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 9), (5, 3), (8, 4)])
def test_any_size_is_upscaled_exactly(ups: int, unshuffle: int, scale: int, width: int, height: int) -> None:
    net = small_rrdb(ups=ups, unshuffle=unshuffle)
    assert net.scale == scale
    assert net(image(width, height)).shape == (1, 3, height * scale, width * scale)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 40), st.lists(st.integers(1, 39), unique=True, max_size=12), st.sampled_from(["rrdb", "srvgg"]))
def test_bands_cut_anywhere_match_the_whole(height: int, cuts: list[int], kind: str) -> None:
    net = small_rrdb() if kind == "rrdb" else small_srvgg()
    x = image(7, height)
    with torch.inference_mode():
        banded = in_bands(net, x, sorted(cut for cut in cuts if cut < height))
        torch.testing.assert_close(banded, net(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["realesrgan-x4plus-anime", "realesr-animevideov3"])
def test_bands_match_the_whole_in_either_precision(name: str, dtype: torch.dtype) -> None:
    net, x = catalog_network(name, dtype), image(16, 37)
    difference = (in_bands(net, x, [5, 6, 20]) - net(x)).abs().max()
    assert float(difference) <= 1e-4


def test_bands_of_deepest_network_match_the_whole() -> None:
    net, x = catalog_network("realsr-df2k", devices.choose_dtype(CPU)), image(8, 24)
    difference = (in_bands(net, x, [8, 16]) - net(x)).abs().max()
    assert float(difference) <= 1e-4


@pytest.mark.parametrize("make", [small_rrdb, small_srvgg, lambda: small_rrdb(unshuffle=2)])
def test_reported_work_adds_up(make: type[Network]) -> None:
    net, x = make(), image(12, 20)
    reported: list[int] = []
    bands = [(x[:, :, :8], False), (x[:, :, 8:], True)]
    list(networks.stream(net, bands, reported.append))
    assert sum(reported) == net.work * 12 * 20
    assert len(reported) >= 2


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: weight.name)
def test_bfloat16_stays_fifty_decibels_from_float32(weight: WeightFile) -> None:
    x = image(20, 20)
    exact, rounded = (catalog_network(weight.name, dtype)(x).clamp(0, 1) for dtype in (torch.float32, torch.bfloat16))
    assert exact.dtype == rounded.dtype == torch.float32
    assert -10 * float(torch.log10((exact - rounded).square().mean())) > 50


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: weight.name)
def test_catalog_networks_reproduce_their_input(weight: WeightFile) -> None:
    """A wrong order of layers or a wrong slope would give noise."""
    x = functional.avg_pool2d(image(48, 48), 2)
    y = catalog_network(weight.name)(x).clamp(0, 1)
    shrunk = resampling.resize(y, 24, 24)
    assert -10 * float(torch.log10((shrunk - x).square().mean())) > 22
