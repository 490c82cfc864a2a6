"""Guided denoising: inputs of the networks for a batch of tiles, and the combination of their outputs."""

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
from hiresfix.engine.diffusion.guidance import Conditioning, epsilon, guided_denoiser, soft_weights, velocity
from hiresfix.engine.diffusion.multidiffusion import (
    Grid,
    Tile,
    TileDenoise,
    classic_grid,
    feathered_grid,
    tiled_denoiser,
)
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
make_embed = pytest.mark.parametrize("whole_control_image", [False, True])


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Use one thread: more would slow down networks as small as these."""
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
    """Replace zero weights too, which would hide the effect of the ControlNet."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    network.eval()


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prompts(cond: int = 1, uncond: int = 1) -> Conditioning:
    return Conditioning(
        cond=random_tensor(1, 7 * cond, WIDTH, seed=2), uncond=random_tensor(1, 7 * uncond, WIDTH, seed=3)
    )


def fractional(sigma: float) -> float:
    return 100.25 + sigma


OPTIONS: dict[str, Any] = {"resemblance": 0.6, "dynamic": 6.0, "timestep": fractional, "factor": 8}


def reference_denoiser(
    unet: UNet2DConditionModel,
    controlnet: ControlNetModel,
    text: Conditioning,
    control_image: Tensor,
    x: Tensor,
    sigma: float,
) -> Callable[[Tile], Tensor]:
    """Denoise one tile and one half at a time with diffusers' own networks."""

    def half(tile: Tile, embedding: Tensor) -> Tensor:
        sample = tile.crop(x) / math.sqrt(sigma**2 + 1)
        t = torch.tensor(fractional(sigma))
        crop = tile.crop(control_image, 8)
        down, middle = controlnet(sample, t, embedding, crop, conditioning_scale=1.0, return_dict=False)
        scales = [0.6 * 0.825 ** (len(down) - number) for number in range(len(down))]
        noise: Tensor = unet(
            sample,
            t,
            embedding,
            down_block_additional_residuals=[value * scale for value, scale in zip(down, scales, strict=True)],
            mid_block_additional_residual=middle * 0.6,
        ).sample
        return tile.crop(x) - sigma * noise

    def both(tile: Tile) -> Tensor:
        cond, uncond = half(tile, text.cond), half(tile, text.uncond)
        return uncond + 6 * (cond - uncond)

    return both


@pytest.mark.parametrize("chunks", [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_batch_equals_single_tiles_and_halves(
    unet: UNet2DConditionModel, controlnet: ControlNetModel, chunks: tuple[int, int]
) -> None:
    text, control_image, x = prompts(*chunks), random_tensor(1, 3, 192, 320).sigmoid(), random_tensor(1, 4, 24, 40)
    tiles = classic_grid(24, 40, tile_height=16, tile_width=24).tiles(0)
    denoise = guided_denoiser(unet, controlnet, text, control_image, **OPTIONS)
    single = reference_denoiser(unet, controlnet, text, control_image, x, 0.6)
    expected = torch.cat([single(tile) for tile in tiles])
    crops = torch.cat([tile.crop(x) for tile in tiles])
    for _ in range(2):  # the second time with the control image cached
        assert (denoise(crops, 0.6, tiles) - expected).abs().max() < 1e-5
    without = guided_denoiser(unet, None, text, None, **OPTIONS)(crops, 0.6, tiles)
    assert (without - expected).abs().max() > 1e-2


@make_embed
def test_networks_stay_unchanged_between_two_images(
    unet: UNet2DConditionModel, controlnet: ControlNetModel, whole_control_image: bool
) -> None:
    tiles, x = [Tile(top=0, left=0, height=16, width=16)], random_tensor(1, 4, 16, 16)
    before = {name: value.clone() for name, value in controlnet.state_dict().items()}
    control_images = [random_tensor(1, 3, 128, 128, seed=seed) for seed in (5, 6)]
    denoisers = [
        guided_denoiser(unet, controlnet, prompts(), control_image, **OPTIONS, whole_control_image=whole_control_image)
        for control_image in control_images
        for _ in "ab"
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
    """Scale the sample by the mean of the text, and record the calls."""

    num_upsamplers = 3
    device = torch.device("cpu")

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.calls: list[SimpleNamespace] = []

    def __call__(self, sample: Tensor, t: Tensor, text: Tensor, **options: Any) -> tuple[Tensor]:
        self.calls.append(SimpleNamespace(sample=sample, t=t, text=text, **options))
        return (sample * text.mean((1, 2))[:, None, None, None],)


class FakeControlNet(nn.Module):
    """Return residuals of one; the image encoder keeps every eighth pixel."""

    config = {"controlnet_conditioning_channel_order": "rgb"}  # noqa: RUF012
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[Tensor] = []
        self.controlnet_cond_embedding = EveryEighthPixel(self.encoded)
        self.controlnet_down_blocks = nn.ModuleList(nn.Identity() for _ in range(12))
        self.seen: list[Tensor] = []

    def forward(
        self, sample: Tensor, t: Tensor, text: Tensor, control_image: Tensor, **options: Any
    ) -> tuple[list[Tensor], Tensor]:
        self.seen.append(self.controlnet_cond_embedding(control_image))
        return [torch.ones(len(sample), 2, 3, 3) for _ in range(12)], torch.ones(len(sample), 2, 1, 1)


class EveryEighthPixel(nn.Module):
    def __init__(self, encoded: list[Tensor]) -> None:
        super().__init__()
        self._encoded = encoded

    def forward(self, control_image: Tensor) -> Tensor:
        self._encoded.append(control_image)
        return control_image[..., ::8, ::8]


def fake_denoiser(unet: FakeUNet, controlnet: FakeControlNet | None, *given: Any, **options: Any) -> TileDenoise:
    networks: list[Any] = [unet, controlnet]
    return guided_denoiser(networks[0], networks[1], *given, **{**OPTIONS, **options})


@make_embed
def test_each_tile_gets_its_part_of_control_image(whole_control_image: bool) -> None:
    down, across = torch.meshgrid(torch.arange(1600.0), torch.arange(2000.0), indexing="ij")
    places = torch.stack([down, across, down])[None]
    controlnet = FakeControlNet()
    denoise = fake_denoiser(FakeUNet(), controlnet, prompts(), places, whole_control_image=whole_control_image)
    tiles = feathered_grid(200, 250, tile_height=96, tile_width=112).tiles(3)
    denoise(random_tensor(len(tiles), 4, tiles[0].height, tiles[0].width), 0.5, tiles)
    (seen,) = controlnet.seen
    assert len(seen) == 2 * len(tiles)
    for half in seen.chunk(2):
        for tile, control_image in zip(tiles, half, strict=True):
            assert (control_image[0, 0, 0], control_image[1, 0, 0]) == (8 * tile.top, 8 * tile.left)
            assert (
                control_image[0, -1, 0] - control_image[0, 0, 0],
                control_image[1, 0, -1] - control_image[1, 0, 0],
            ) == (
                8 * (tile.height - 1),
                8 * (tile.width - 1),
            )


def test_both_halves_use_published_soft_weights() -> None:
    assert soft_weights(1.0, 13) == pytest.approx(PUBLISHED, abs=5e-6)
    unet, tiles = FakeUNet(), [Tile(top=0, left=left, height=8, width=8) for left in (0, 4)]
    fake_denoiser(unet, FakeControlNet(), prompts(), torch.zeros(1, 3, 64, 96))(random_tensor(2, 4, 8, 8), 0.5, tiles)
    (call,) = unet.calls
    residuals = [*call.down_block_additional_residuals, call.mid_block_additional_residual]
    for residual, weight in zip(residuals, PUBLISHED, strict=True):
        assert len(residual) == 4
        assert residual.flatten().tolist() == pytest.approx([0.6 * weight] * residual.numel(), abs=5e-6)


def test_zero_resemblance_skips_controlnet() -> None:
    unet, controlnet = FakeUNet(), FakeControlNet()
    tile = [Tile(top=0, left=0, height=8, width=8)]
    fake_denoiser(unet, controlnet, prompts(), None, resemblance=0.0)(random_tensor(1, 4, 8, 8), 0.5, tile)
    assert controlnet.seen == controlnet.encoded == []
    assert unet.calls[0].down_block_additional_residuals is None
    assert unet.calls[0].mid_block_additional_residual is None


def test_batch_is_one_call_without_unneeded_uncond() -> None:
    tiles = [Tile(top=0, left=left, height=8, width=8) for left in (0, 4, 8)]
    text, x = prompts(), random_tensor(3, 4, 8, 8)
    unet = FakeUNet()
    fake_denoiser(unet, None, text, None)(x, 0.5, tiles)
    (call,) = unet.calls
    assert torch.equal(call.text, torch.cat([text.cond] * 3 + [text.uncond] * 3))
    assert torch.equal(call.sample, torch.cat([x * epsilon(0.5).input] * 2))
    assert call.t.dtype == torch.float32
    assert call.t.tolist() == [100.75]
    unet = FakeUNet()
    alone = fake_denoiser(unet, None, text, None, dynamic=1)(x, 0.5, tiles)
    assert [len(call.sample) for call in unet.calls] == [3]
    assert torch.allclose(alone, x - 0.5 * epsilon(0.5).input * text.cond.mean() * x)


def test_prompts_share_call_only_if_lengths_divide() -> None:
    assert [tuple(context.shape) for context in prompts(3, 1).contexts(6)] == [(2, 21, WIDTH)]
    assert [tuple(context.shape) for context in prompts(2, 4).contexts(6)] == [(2, 28, WIDTH)]
    assert [tuple(context.shape) for context in prompts(2, 3).contexts(6)] == [(1, 14, WIDTH), (1, 21, WIDTH)]
    assert [tuple(context.shape) for context in prompts(2, 3).contexts(1)] == [(1, 14, WIDTH)]


def test_networks_get_fractional_timesteps(unet: UNet2DConditionModel, controlnet: ControlNetModel) -> None:
    x, text, control_image = random_tensor(1, 4, 8, 8), random_tensor(1, 7, WIDTH), random_tensor(1, 3, 64, 64)
    at = [unet(x, torch.tensor([t]), text).sample for t in (237.0, 237.05, 237.5)]
    controls = [controlnet(x, torch.tensor([t]), text, control_image)[1] for t in (237.0, 237.05, 237.5)]
    for answers in (at, controls):
        near, far = ((answer - answers[0]).abs().max() for answer in answers[1:])
        assert 0 < near < far


@pytest.mark.parametrize("scaling", [epsilon, velocity])
@pytest.mark.parametrize("sigma", [0.03, 0.66, 14.6])
def test_perfect_network_returns_clean_latent(scaling: Callable[[float], guidance.Scaling], sigma: float) -> None:
    clean, noise = random_tensor(1, 4, 8, 8, seed=1).double(), random_tensor(1, 4, 8, 8, seed=2).double()
    x, scale = clean + sigma * noise, scaling(sigma)
    right = noise if scaling is epsilon else (noise - sigma * clean) / math.sqrt(sigma**2 + 1)
    assert torch.allclose(scale.skip * x + scale.output * right, clean)
    assert (scale.input * x).var() == pytest.approx(1, abs=0.25)


def test_scaling_can_be_replaced() -> None:
    tile, x = [Tile(top=0, left=0, height=8, width=8)], random_tensor(1, 4, 8, 8)
    text = Conditioning(cond=torch.ones(1, 7, WIDTH), uncond=torch.ones(1, 7, WIDTH))
    result = fake_denoiser(FakeUNet(), None, text, None, scaling=velocity)(x, 2.0, tile)
    assert torch.allclose(result, x / 5 - 2 / math.sqrt(5) * x / math.sqrt(5), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 5), (9, 8), (13, 30), (16, 24)])
def test_any_size_works_and_multiples_are_exact(
    unet: UNet2DConditionModel, controlnet: ControlNetModel, height: int, width: int
) -> None:
    x, control_image = random_tensor(1, 4, height, width), random_tensor(1, 3, 8 * height, 8 * width).sigmoid()
    tile = Tile(top=0, left=0, height=height, width=width)
    for whole_control_image in (False, True):
        denoise = guided_denoiser(
            unet, controlnet, prompts(), control_image, **OPTIONS, whole_control_image=whole_control_image
        )
        result = denoise(x, 0.6, [tile])
        assert result.shape == x.shape
        assert result.isfinite().all()
        if height % 8 == width % 8 == 0:
            expected = reference_denoiser(unet, controlnet, prompts(), control_image, x, 0.6)(tile)
            assert (result - expected).abs().max() < 1e-5


def test_odd_sizes_are_mirrored_in_both_inputs() -> None:
    unet, controlnet = FakeUNet(), FakeControlNet()
    x = torch.arange(3.0).expand(1, 4, 9, 3) + 1
    control_image = x[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)
    fake_denoiser(unet, controlnet, prompts(), control_image)(x, 0.0, [Tile(top=0, left=0, height=9, width=3)])
    sample = unet.calls[0].sample
    assert sample.shape == (2, 4, 16, 8)
    assert sample[0, 0, 0].tolist() == [1, 2, 3, 3, 2, 1, 1, 2]
    assert torch.equal(controlnet.seen[0], sample[:, :3])


def test_tile_encodings_are_cached_up_to_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    controlnet = FakeControlNet()
    tiles = classic_grid(8, 44, tile_height=8, tile_width=16).tiles(0)
    monkeypatch.setattr(guidance, "MAX_CACHED_PIXELS", 2 * 8 * 16)
    denoise = fake_denoiser(FakeUNet(), controlnet, prompts(), torch.zeros(1, 3, 64, 352))
    counts = []
    for _ in range(3):
        denoise(random_tensor(len(tiles), 4, 8, 16), 0.5, tiles)
        counts.append(len(controlnet.encoded))
    missed = len(tiles) - 2
    assert missed > 0
    assert counts == [len(tiles), len(tiles) + missed, len(tiles) + 2 * missed]


def test_whole_control_image_is_encoded_once_in_blocks(
    controlnet: ControlNetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, control_image = controlnet.controlnet_cond_embedding, random_tensor(1, 3, 264, 344)
    everything = Tile(top=0, left=0, height=33, width=43)
    monkeypatch.setattr(guidance, "_BLOCK_SIDE", 8)
    sizes: list[int] = []

    def recording_encode(part: Tensor) -> Tensor:
        sizes.append(max(part.shape[-2:]))
        result: Tensor = encode(part)
        return result

    embed = guidance.embed_whole_canvas(recording_encode, control_image, 8)
    assert (embed([everything]) - encode(control_image)).abs().max() < 1e-5
    blocks = len(sizes)
    assert blocks > 1
    assert max(sizes) <= 8 * (8 + 2 * guidance.ENCODER_HALO)
    embed([Tile(top=3, left=5, height=16, width=24)])
    assert len(sizes) == blocks


def test_whole_and_separate_encoding_differ_only_near_borders(controlnet: ControlNetModel) -> None:
    encode, control_image = controlnet.controlnet_cond_embedding, random_tensor(1, 3, 320, 320)
    inner, halo = Tile(top=5, left=9, height=24, width=24), guidance.ENCODER_HALO
    cut, alone = (
        make(encode, control_image, 8)([inner]) for make in (guidance.embed_whole_canvas, guidance.embed_each_tile)
    )
    assert (cut - alone).abs().max() > 1e-3
    assert (cut - alone)[..., halo:-halo, halo:-halo].abs().max() < 1e-5
    corner = Tile(top=0, left=0, height=24, width=24)
    cut, alone = (
        make(encode, control_image, 8)([corner]) for make in (guidance.embed_whole_canvas, guidance.embed_each_tile)
    )
    assert (cut - alone)[..., :-halo, :-halo].abs().max() < 1e-5


def test_networks_keep_their_dtype_state_stays_float32(unet: UNet2DConditionModel, controlnet: ControlNetModel) -> None:
    low_unet, low_controlnet = copy.deepcopy(unet), copy.deepcopy(controlnet)
    for network in (low_unet, low_controlnet):
        nn.Module.to(network, torch.bfloat16)
    x, control_image, tile = (
        random_tensor(1, 4, 16, 16),
        random_tensor(1, 3, 128, 128),
        [Tile(top=0, left=0, height=16, width=16)],
    )
    low = guided_denoiser(low_unet, low_controlnet, prompts(), control_image, **OPTIONS)(x, 0.1, tile)
    assert low.dtype == torch.float32
    exact = guided_denoiser(unet, controlnet, prompts(), control_image, **OPTIONS)(x, 0.1, tile)
    assert (low - exact).abs().max() < 0.15
    # At sigma near 0 the state remains, which must not have gone through bfloat16.
    assert torch.allclose(guided_denoiser(low_unet, None, prompts(), None, **OPTIONS)(x, 1e-7, tile), x, atol=1e-5)


@pytest.mark.parametrize(("make_grid", "whole_control_image"), [(classic_grid, False), (feathered_grid, True)])
def test_full_size_evaluation_never_reads_a_value(make_grid: Callable[..., Grid], whole_control_image: bool) -> None:
    # Tensors on the meta device have no values: reading one raises.
    full: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
    text = Conditioning(cond=torch.empty(1, 77, 768), uncond=torch.empty(1, 154, 768))
    with torch.device("meta"):
        unet, controlnet = UNet2DConditionModel(**full), ControlNetModel(**full)
        x, control_image = torch.empty(1, 4, 256, 256), torch.empty(1, 3, 2048, 2048)
    tile_denoise = guided_denoiser(
        unet, controlnet, text, control_image, **OPTIONS, whole_control_image=whole_control_image
    )
    denoise = tiled_denoiser(tile_denoise, make_grid(256, 256, tile_height=144, tile_width=112), batch=6)
    assert denoise(x, 0.6).shape == x.shape


@pytest.mark.parametrize("control_image", [None, torch.zeros(1, 3, 63, 64)], ids=["missing", "odd"])
def test_control_image_of_wrong_size_is_rejected(control_image: Tensor | None) -> None:
    with pytest.raises(ValueError, match="give one 8 times the size of the latent canvas"):
        fake_denoiser(FakeUNet(), FakeControlNet(), prompts(), control_image)


def test_bgr_controlnet_is_rejected() -> None:
    controlnet = FakeControlNet()
    controlnet.config = {"controlnet_conditioning_channel_order": "bgr"}
    with pytest.raises(WeightsError, match="Use one that expects RGB"):
        fake_denoiser(FakeUNet(), controlnet, prompts(), torch.zeros(1, 3, 64, 64))
