"""What the networks are asked about a batch of tiles, and what is made of their answers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from hiresfix.engine.diffusion import guidance
from hiresfix.engine.diffusion.guidance import Conditioning, epsilon, guided, soft_weights, velocity
from hiresfix.engine.diffusion.multidiffusion import Grid, Tile, TileDenoise, classic_grid, feathered_grid, tiled
from hiresfix.errors import WeightsError

WIDTH = 16
TINY: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
PUBLISHED = [
    *(0.09941, 0.12050, 0.14606, 0.17705, 0.21460, 0.26012, 0.31530),
    *(0.38218, 0.46325, 0.56152, 0.68062, 0.82500, 1.00000),
]
make_embed = pytest.mark.parametrize("whole_hint", [False, True])


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads cost networks as small as these more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    unet: UNet2DConditionModel = UNet2DConditionModel(**TINY)
    randomise(unet)
    return unet


@pytest.fixture(scope="module")
def controlnet() -> ControlNetModel:
    controlnet: ControlNetModel = ControlNetModel(**TINY, conditioning_embedding_out_channels=(4, 4, 8, 8))
    randomise(controlnet)
    return controlnet


def randomise(network: nn.Module) -> None:
    """Also where training starts with zeros, which would hide what the ControlNet does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    network.eval()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prompts(cond: int = 1, uncond: int = 1) -> Conditioning:
    return Conditioning(cond=drawn(1, 7 * cond, WIDTH, seed=2), uncond=drawn(1, 7 * uncond, WIDTH, seed=3))


def fractional(sigma: float) -> float:
    return 100.25 + sigma


OPTIONS: dict[str, Any] = {"resemblance": 0.6, "dynamic": 6.0, "timestep": fractional, "factor": 8}


def straightforward(
    unet: UNet2DConditionModel, controlnet: ControlNetModel, text: Conditioning, hint: Tensor, x: Tensor, sigma: float
) -> Callable[[Tile], Tensor]:
    """One tile and one half at a time, through the networks as diffusers publishes them."""

    def half(tile: Tile, embedding: Tensor) -> Tensor:
        sample = tile.of(x) / math.sqrt(sigma**2 + 1)
        t = torch.tensor(fractional(sigma))
        place = tile.of(hint, 8)
        down, middle = controlnet(sample, t, embedding, place, conditioning_scale=1.0, return_dict=False)
        scales = [0.6 * 0.825 ** (len(down) - number) for number in range(len(down))]
        noise: Tensor = unet(
            sample,
            t,
            embedding,
            down_block_additional_residuals=[value * scale for value, scale in zip(down, scales, strict=True)],
            mid_block_additional_residual=middle * 0.6,
        ).sample
        return tile.of(x) - sigma * noise

    def both(tile: Tile) -> Tensor:
        cond, uncond = half(tile, text.cond), half(tile, text.uncond)
        return uncond + 6 * (cond - uncond)

    return both


@pytest.mark.parametrize("chunks", [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_a_batch_of_tiles_is_what_single_tiles_and_halves_give(
    unet: UNet2DConditionModel, controlnet: ControlNetModel, chunks: tuple[int, int]
) -> None:
    text, hint, x = prompts(*chunks), drawn(1, 3, 192, 320).sigmoid(), drawn(1, 4, 24, 40)
    tiles = classic_grid(24, 40, tile_height=16, tile_width=24).tiles(0)
    denoise = guided(unet, controlnet, text, hint, **OPTIONS)
    single = straightforward(unet, controlnet, text, hint, x, 0.6)
    expected = torch.cat([single(tile) for tile in tiles])
    crops = torch.cat([tile.of(x) for tile in tiles])
    for _ in range(2):  # the second time with the hint remembered
        assert (denoise(crops, 0.6, tiles) - expected).abs().max() < 1e-5
    without = guided(unet, None, text, None, **OPTIONS)(crops, 0.6, tiles)
    assert (without - expected).abs().max() > 1e-2


@make_embed
def test_the_networks_stay_as_they_were_and_serve_two_pictures_in_turns(
    unet: UNet2DConditionModel, controlnet: ControlNetModel, whole_hint: bool
) -> None:
    tiles, x = [Tile(top=0, left=0, height=16, width=16)], drawn(1, 4, 16, 16)
    before = {name: value.clone() for name, value in controlnet.state_dict().items()}
    pictures = [drawn(1, 3, 128, 128, seed=seed) for seed in (5, 6)]
    denoisers = [
        guided(unet, controlnet, prompts(), hint, **OPTIONS, whole_hint=whole_hint) for hint in pictures for _ in "ab"
    ]
    first, again, second, other = (denoise(x, 0.5, tiles) for denoise in denoisers)
    assert torch.equal(first, again)
    assert torch.equal(second, other)
    assert not torch.allclose(first, second)
    assert torch.equal(denoisers[0](x, 0.5, tiles), first)
    after = controlnet.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not isinstance(controlnet._modules["controlnet_cond_embedding"], nn.Identity)


class FakeUNet:
    """Answers with `answer`, and remembers what it was asked."""

    num_upsamplers = 3
    device = torch.device("cpu")

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.calls: list[SimpleNamespace] = []

    def __call__(self, sample: Tensor, t: Tensor, text: Tensor, **given: Any) -> tuple[Tensor]:
        self.calls.append(SimpleNamespace(sample=sample, t=t, text=text, **given))
        return (sample * text.mean((1, 2))[:, None, None, None],)


class FakeControlNet(nn.Module):
    """Every residual is one; the hint's encoder keeps each eighth pixel."""

    config = {"controlnet_conditioning_channel_order": "rgb"}  # noqa: RUF012
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[Tensor] = []
        self.controlnet_cond_embedding = Eighth(self.encoded)
        self.controlnet_down_blocks = nn.ModuleList(nn.Identity() for _ in range(12))
        self.seen: list[Tensor] = []

    def forward(
        self, sample: Tensor, t: Tensor, text: Tensor, hint: Tensor, **given: Any
    ) -> tuple[list[Tensor], Tensor]:
        self.seen.append(self.controlnet_cond_embedding(hint))
        return [torch.ones(len(sample), 2, 3, 3) for _ in range(12)], torch.ones(len(sample), 2, 1, 1)


class Eighth(nn.Module):
    def __init__(self, encoded: list[Tensor]) -> None:
        super().__init__()
        self._encoded = encoded

    def forward(self, hint: Tensor) -> Tensor:
        self._encoded.append(hint)
        return hint[..., ::8, ::8]


def faked(unet: FakeUNet, controlnet: FakeControlNet | None, *given: Any, **options: Any) -> TileDenoise:
    networks: list[Any] = [unet, controlnet]
    return guided(networks[0], networks[1], *given, **{**OPTIONS, **options})


@make_embed
def test_both_halves_of_each_tile_get_the_hint_of_its_own_place(whole_hint: bool) -> None:
    down, across = torch.meshgrid(torch.arange(1600.0), torch.arange(2000.0), indexing="ij")
    places = torch.stack([down, across, down])[None]
    controlnet = FakeControlNet()
    denoise = faked(FakeUNet(), controlnet, prompts(), places, whole_hint=whole_hint)
    tiles = feathered_grid(200, 250, tile_height=96, tile_width=112).tiles(3)
    denoise(drawn(len(tiles), 4, tiles[0].height, tiles[0].width), 0.5, tiles)
    (seen,) = controlnet.seen
    assert len(seen) == 2 * len(tiles)
    for half in seen.chunk(2):
        for tile, hint in zip(tiles, half, strict=True):
            assert (hint[0, 0, 0], hint[1, 0, 0]) == (8 * tile.top, 8 * tile.left)
            assert (hint[0, -1, 0] - hint[0, 0, 0], hint[1, 0, -1] - hint[1, 0, 0]) == (
                8 * (tile.height - 1),
                8 * (tile.width - 1),
            )


def test_each_half_is_controlled_by_the_published_soft_weights() -> None:
    assert soft_weights(1.0, 13) == pytest.approx(PUBLISHED, abs=5e-6)
    unet, tiles = FakeUNet(), [Tile(top=0, left=left, height=8, width=8) for left in (0, 4)]
    faked(unet, FakeControlNet(), prompts(), torch.zeros(1, 3, 64, 96))(drawn(2, 4, 8, 8), 0.5, tiles)
    (call,) = unet.calls
    residuals = [*call.down_block_additional_residuals, call.mid_block_additional_residual]
    for residual, weight in zip(residuals, PUBLISHED, strict=True):
        assert len(residual) == 4
        assert residual.flatten().tolist() == pytest.approx([0.6 * weight] * residual.numel(), abs=5e-6)


def test_no_resemblance_is_no_controlnet() -> None:
    unet, controlnet = FakeUNet(), FakeControlNet()
    tile = [Tile(top=0, left=0, height=8, width=8)]
    faked(unet, controlnet, prompts(), None, resemblance=0.0)(drawn(1, 4, 8, 8), 0.5, tile)
    assert controlnet.seen == controlnet.encoded == []
    assert unet.calls[0].down_block_additional_residuals is None
    assert unet.calls[0].mid_block_additional_residual is None


def test_cond_and_uncond_of_all_tiles_are_one_call_and_no_guidance_leaves_uncond_out() -> None:
    tiles = [Tile(top=0, left=left, height=8, width=8) for left in (0, 4, 8)]
    text, x = prompts(), drawn(3, 4, 8, 8)
    unet = FakeUNet()
    faked(unet, None, text, None)(x, 0.5, tiles)
    (call,) = unet.calls
    assert torch.equal(call.text, torch.cat([text.cond] * 3 + [text.uncond] * 3))
    assert torch.equal(call.sample, torch.cat([x * epsilon(0.5).input] * 2))
    assert call.t.dtype == torch.float32
    assert call.t.tolist() == [100.75]
    unet = FakeUNet()
    alone = faked(unet, None, text, None, dynamic=1)(x, 0.5, tiles)
    assert [len(call.sample) for call in unet.calls] == [3]
    assert torch.allclose(alone, x - 0.5 * epsilon(0.5).input * text.cond.mean() * x)


def test_prompts_of_other_lengths_share_a_call_only_if_one_fits_evenly_into_the_other() -> None:
    assert [tuple(context.shape) for context in prompts(3, 1).contexts(6)] == [(2, 21, WIDTH)]
    assert [tuple(context.shape) for context in prompts(2, 4).contexts(6)] == [(2, 28, WIDTH)]
    assert [tuple(context.shape) for context in prompts(2, 3).contexts(6)] == [(1, 14, WIDTH), (1, 21, WIDTH)]
    assert [tuple(context.shape) for context in prompts(2, 3).contexts(1)] == [(1, 14, WIDTH)]


def test_the_networks_hear_a_fractional_timestep(unet: UNet2DConditionModel, controlnet: ControlNetModel) -> None:
    x, text, hint = drawn(1, 4, 8, 8), drawn(1, 7, WIDTH), drawn(1, 3, 64, 64)
    at = [unet(x, torch.tensor([t]), text).sample for t in (237.0, 237.05, 237.5)]
    controls = [controlnet(x, torch.tensor([t]), text, hint)[1] for t in (237.0, 237.05, 237.5)]
    for answers in (at, controls):
        near, far = ((answer - answers[0]).abs().max() for answer in answers[1:])
        assert 0 < near < far


@pytest.mark.parametrize("scaling", [epsilon, velocity])
@pytest.mark.parametrize("sigma", [0.03, 0.66, 14.6])
def test_a_network_that_is_right_gives_back_the_clean_latent(
    scaling: Callable[[float], guidance.Scaling], sigma: float
) -> None:
    clean, noise = drawn(1, 4, 8, 8, seed=1).double(), drawn(1, 4, 8, 8, seed=2).double()
    x, scale = clean + sigma * noise, scaling(sigma)
    right = noise if scaling is epsilon else (noise - sigma * clean) / math.sqrt(sigma**2 + 1)
    assert torch.allclose(scale.skip * x + scale.output * right, clean)
    assert (scale.input * x).var() == pytest.approx(1, abs=0.25)


def test_another_parametrisation_is_one_function() -> None:
    tile, x = [Tile(top=0, left=0, height=8, width=8)], drawn(1, 4, 8, 8)
    text = Conditioning(cond=torch.ones(1, 7, WIDTH), uncond=torch.ones(1, 7, WIDTH))
    result = faked(FakeUNet(), None, text, None, scaling=velocity)(x, 2.0, tile)
    assert torch.allclose(result, x / 5 - 2 / math.sqrt(5) * x / math.sqrt(5), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 5), (9, 8), (13, 30), (16, 24)])
def test_any_size_comes_out_as_it_went_in_and_is_exact_where_nothing_had_to_be_added(
    unet: UNet2DConditionModel, controlnet: ControlNetModel, height: int, width: int
) -> None:
    x, hint = drawn(1, 4, height, width), drawn(1, 3, 8 * height, 8 * width).sigmoid()
    tile = Tile(top=0, left=0, height=height, width=width)
    for whole_hint in (False, True):
        denoise = guided(unet, controlnet, prompts(), hint, **OPTIONS, whole_hint=whole_hint)
        result = denoise(x, 0.6, [tile])
        assert result.shape == x.shape
        assert result.isfinite().all()
        if height % 8 == width % 8 == 0:
            expected = straightforward(unet, controlnet, prompts(), hint, x, 0.6)(tile)
            assert (result - expected).abs().max() < 1e-5


def test_what_is_added_to_odd_sizes_is_their_mirror_image_for_latent_and_hint_alike() -> None:
    unet, controlnet = FakeUNet(), FakeControlNet()
    x = torch.arange(3.0).expand(1, 4, 9, 3) + 1
    hint = x[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)
    faked(unet, controlnet, prompts(), hint)(x, 0.0, [Tile(top=0, left=0, height=9, width=3)])
    sample = unet.calls[0].sample
    assert sample.shape == (2, 4, 16, 8)
    assert sample[0, 0, 0].tolist() == [1, 2, 3, 3, 2, 1, 1, 2]
    assert torch.equal(controlnet.seen[0], sample[:, :3])


def test_a_tiles_hint_is_encoded_once_and_no_more_is_kept_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    controlnet = FakeControlNet()
    tiles = classic_grid(8, 44, tile_height=8, tile_width=16).tiles(0)
    monkeypatch.setattr(guidance, "KEPT_PIXELS", 2 * 8 * 16)
    denoise = faked(FakeUNet(), controlnet, prompts(), torch.zeros(1, 3, 64, 352))
    counts = []
    for _ in range(3):
        denoise(drawn(len(tiles), 4, 8, 16), 0.5, tiles)
        counts.append(len(controlnet.encoded))
    missed = len(tiles) - 2
    assert missed > 0
    assert counts == [len(tiles), len(tiles) + missed, len(tiles) + 2 * missed]


def test_the_whole_hint_is_encoded_once_wherever_the_grid_moves_and_in_blocks_as_if_at_once(
    controlnet: ControlNetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, hint = controlnet.controlnet_cond_embedding, drawn(1, 3, 264, 344)
    everything = Tile(top=0, left=0, height=33, width=43)
    monkeypatch.setattr(guidance, "_BLOCK", 8)
    sizes: list[int] = []

    def watched(part: Tensor) -> Tensor:
        sizes.append(max(part.shape[-2:]))
        result: Tensor = encode(part)
        return result

    embed = guidance.whole(watched, hint, 8)
    assert (embed([everything]) - encode(hint)).abs().max() < 1e-5
    blocks = len(sizes)
    assert blocks > 1
    assert max(sizes) <= 8 * (8 + 2 * guidance.ENCODER_HALO)
    embed([Tile(top=3, left=5, height=16, width=24)])
    assert len(sizes) == blocks


def test_a_tile_cut_from_the_whole_hint_differs_only_within_the_halo_of_its_border(controlnet: ControlNetModel) -> None:
    encode, hint = controlnet.controlnet_cond_embedding, drawn(1, 3, 320, 320)
    inner, halo = Tile(top=5, left=9, height=24, width=24), guidance.ENCODER_HALO
    cut, alone = (make(encode, hint, 8)([inner]) for make in (guidance.whole, guidance.apart))
    assert (cut - alone).abs().max() > 1e-3
    assert (cut - alone)[..., halo:-halo, halo:-halo].abs().max() < 1e-5
    corner = Tile(top=0, left=0, height=24, width=24)
    cut, alone = (make(encode, hint, 8)([corner]) for make in (guidance.whole, guidance.apart))
    assert (cut - alone)[..., :-halo, :-halo].abs().max() < 1e-5


def test_networks_compute_in_their_own_precision_and_the_state_stays_float32(
    unet: UNet2DConditionModel, controlnet: ControlNetModel
) -> None:
    low_unet, low_controlnet = copy.deepcopy(unet), copy.deepcopy(controlnet)
    for network in (low_unet, low_controlnet):
        nn.Module.to(network, torch.bfloat16)
    x, hint, tile = drawn(1, 4, 16, 16), drawn(1, 3, 128, 128), [Tile(top=0, left=0, height=16, width=16)]
    low = guided(low_unet, low_controlnet, prompts(), hint, **OPTIONS)(x, 0.1, tile)
    assert low.dtype == torch.float32
    exact = guided(unet, controlnet, prompts(), hint, **OPTIONS)(x, 0.1, tile)
    assert (low - exact).abs().max() < 0.15
    # sigma tends to 0: what is left of the state must not have gone through 8 bits.
    assert torch.allclose(guided(low_unet, None, prompts(), None, **OPTIONS)(x, 1e-7, tile), x, atol=1e-5)


@pytest.mark.parametrize(("make_grid", "whole_hint"), [(classic_grid, False), (feathered_grid, True)])
def test_an_evaluation_by_stable_diffusions_own_networks_never_asks_the_device_for_a_value(
    make_grid: Callable[..., Grid], whole_hint: bool
) -> None:
    # Tensors on the meta device have shapes and no values: whatever waits for one raises.
    full: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
    text = Conditioning(cond=torch.empty(1, 77, 768), uncond=torch.empty(1, 154, 768))
    with torch.device("meta"):
        unet, controlnet = UNet2DConditionModel(**full), ControlNetModel(**full)
        x, hint = torch.empty(1, 4, 256, 256), torch.empty(1, 3, 2048, 2048)
    tile_denoise = guided(unet, controlnet, text, hint, **OPTIONS, whole_hint=whole_hint)
    denoise = tiled(tile_denoise, make_grid(256, 256, tile_height=144, tile_width=112), batch=6)
    assert denoise(x, 0.6).shape == x.shape


@pytest.mark.parametrize("hint", [None, torch.zeros(1, 3, 63, 64)], ids=["missing", "odd"])
def test_a_hint_that_does_not_fit_is_refused(hint: Tensor | None) -> None:
    with pytest.raises(ValueError, match="give one 8 times the size of the latent canvas"):
        faked(FakeUNet(), FakeControlNet(), prompts(), hint)


def test_a_controlnet_of_another_colour_order_is_refused() -> None:
    controlnet = FakeControlNet()
    controlnet.config = {"controlnet_conditioning_channel_order": "bgr"}
    with pytest.raises(WeightsError, match="Use one that wants RGB"):
        faked(FakeUNet(), controlnet, prompts(), torch.zeros(1, 3, 64, 64))
