"""Device traffic of a job, recorded on a phantom GPU: the sampling loop must never wait for the device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from hiresfix.engine import devices
from hiresfix.engine.analysis import metrics
from hiresfix.engine.diffusion import guidance, multidiffusion, pipeline
from hiresfix.engine.diffusion.compact.preconditioning import Preconditioning
from hiresfix.engine.diffusion.guidance import Conditioning
from hiresfix.engine.diffusion.pipeline import DiffusionModel
from hiresfix.engine.diffusion.prompts import PromptEncoder
from hiresfix.engine.diffusion.sampling import Noise, NoiseTable, Sampler, dpmpp_3m_sde
from hiresfix.engine.diffusion.vae import Autoencoder
from hiresfix.engine.superres.networks import SRVGGNetCompact
from hiresfix.models.catalog import CLARITY
from tests.engine import phantom
from tests.engine.diffusion.test_pipeline import text_encoder
from tests.engine.phantom import Event, Recording
from tests.engine.weights.test_checkpoints import controlnet, unet, vae
from tests.sample_images import photo

FACTOR = 4
HEIGHT, WIDTH = 24, 40  # of the image; its latent of 12 x 20 has two tiles
EVALUATIONS = 2
MATRICES = {
    "linear",
    "conv2d",
    "scaled_dot_product_attention",
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "matmul",
    "convolution",
}


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "ASYNC_COPY_DEVICES", (phantom.DEVICE_NAME,))
        yield patch


@pytest.fixture(scope="module")
def job(patch: pytest.MonkeyPatch) -> Recording:
    """Record one job in the stages encode, sample, decode and measure; calls of the UNet are events too."""
    networks = [copy.deepcopy(network) for network in (unet(), controlnet(), text_encoder(), vae())]
    upscale_network = SRVGGNetCompact(convs=1, features=8)
    recipe = replace(CLARITY.presets["clarity"], loras=(), embeddings=(), seed=3, steps=3, sharpen=1.0)
    recipe = replace(recipe, tile_height=16, tile_width=16)
    table = NoiseTable.scaled_linear()
    with phantom.record() as walk:
        patch.setattr(NoiseTable, "scaled_linear", lambda half: table)  # the table's values must be real
        for owner, name, stage in (
            (Sampler, "run", "sample"),
            (Autoencoder, "encode", "encode"),
            (Autoencoder, "decode", "decode"),
        ):
            patch.setattr(owner, name, in_stage(walk, stage, getattr(owner, name)))
        network, control, text, autoencoder = (phantom.move_to_phantom(item, torch.float16) for item in networks)
        model = DiffusionModel(
            unet=record_calls(walk, network),
            controlnet=control,
            prompt_encoder=PromptEncoder(text),
            codec=Autoencoder(network=autoencoder),
            batch=4,
        )
        result = pipeline.run(
            model,
            phantom.move_to_phantom(upscale_network, torch.float16),
            photo(WIDTH, HEIGHT),
            recipe,
            lambda done: None,
        )
        with walk.at("measure"):
            metrics.measure(result.rgb, photo(WIDTH, HEIGHT), device=phantom.device())
    assert result.rgb.shape == (2 * HEIGHT, 2 * WIDTH, 3)
    return walk


def in_stage(walk: Recording, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def at_stage(*args: Any, **kwargs: Any) -> Any:
        with walk.at(stage):
            return work(*args, **kwargs)

    return at_stage


def record_calls(walk: Recording, network: Any) -> Any:
    def note(module: Any, args: Sequence[Any]) -> None:
        sample, text = args[0], args[2]
        tensors = tuple((item.device.type, item.dtype, tuple(item.shape)) for item in (sample, text))
        walk.events.append(Event(stage=walk.stage, name="unet", tensors=tensors))

    network.register_forward_pre_hook(note)
    return network


def test_phantom_rejects_mixed_devices_and_records_waits() -> None:
    with phantom.record() as walk:
        x = torch.ones(2, device=phantom.device())
        with pytest.raises(RuntimeError, match="on the same device"):
            x + torch.ones(2)
        for wait in (lambda: x.sum().item(), lambda: x.cpu(), lambda: bool(x.any()), lambda: torch.ones(2).to(x)):
            before = len(walk.events)
            wait()
            assert [event.waits for event in walk.events[before:]].count(True) == 1
        torch.ones(2).pin_memory().to(x.device, non_blocking=True)
        assert not walk.events[-1].waits


def test_sampling_loop_never_reads_or_waits(job: Recording) -> None:
    loop = job.of("sample")
    assert [event.name for event in loop].count("unet") == EVALUATIONS
    assert [event for event in loop if event.leaves or event.waits] == []


def test_loop_sends_only_control_image_weights_and_noise(job: Recording) -> None:
    sent = [event.tensors[0][1:] for event in job.of("sample") if event.arrives]
    latent = (1, 4, 2 * HEIGHT // FACTOR, 2 * WIDTH // FACTOR)
    assert sent == [
        (torch.uint8, (1, 3, 2 * HEIGHT, 2 * WIDTH)),
        (torch.float32, (12, 16)),
        *[(torch.float32, latent)] * (EVALUATIONS - 1),
    ]


def test_work_on_whole_images_stays_on_device(job: Recording) -> None:
    work = ("_upsample_bicubic2d_aa", "avg_pool2d", "max_pool2d", "index_select")
    places = {(event.name, event.tensors[0][0]) for event in job.of("", "measure") if event.name in work}
    assert places == {(name, phantom.DEVICE_NAME) for name in work}


def test_networks_use_half_precision_and_fused_attention(job: Recording) -> None:
    on_device = [event for event in job.events if any(device == phantom.DEVICE_NAME for device, _, _ in event.tensors)]
    assert not [event for event in on_device if any(dtype == torch.float64 for _, dtype, _ in event.tensors)]
    computed = [event for event in on_device if event.name in MATRICES and event.stage not in ("", "measure")]
    assert len(computed) > 200
    assert {dtype for event in computed for _, dtype, _ in event.tensors} == {torch.float16}
    for stage in ("sample", "encode", "decode"):
        names = [event.name for event in job.of(stage)]
        assert "scaled_dot_product_attention" in names
        assert not {"softmax", "_softmax", "bmm", "baddbmm"} & set(names)


def test_both_halves_of_all_tiles_share_one_call(job: Recording) -> None:
    calls = [event.tensors for event in job.of("sample") if event.name == "unet"]
    assert {(sample[2], text[2]) for sample, text in calls} == {((4, 4, 12, 16), (4, 77, 64))}


def test_autoencoder_waits_once_per_statistic_and_piece(job: Recording) -> None:
    reads = {
        stage: [event.name for event in job.of(stage) if event.waits and event.leaves] for stage in ("encode", "decode")
    }
    # The statistics before attention, the check for finite values, and the decoder's pixels.
    assert reads == {"encode": ["to", "is_nonzero"], "decode": ["to", "is_nonzero", "to"]}


def test_images_cross_to_and_from_device_as_uint8(job: Recording) -> None:
    events = [event for event in job.events if event.stage != "measure"]  # measuring reads its results
    moved = [event for event in events if event.arrives + event.leaves >= 3 * HEIGHT * WIDTH]
    dtypes = [event.tensors[0][1] for event in moved if 3 in event.tensors[0][2]]
    assert len(dtypes) >= 6
    assert set(dtypes) == {torch.uint8}


def test_classic_grid_and_anchored_checkpoint_never_wait(patch: pytest.MonkeyPatch) -> None:
    networks = [copy.deepcopy(network) for network in (unet(), controlnet())]
    statistics = Preconditioning(variance=(1.0,) * 4, regression=(0.5,) * 4, residual=(0.5,) * 4)
    grid = multidiffusion.classic_grid(12, 20, tile_height=12, tile_width=12)
    with phantom.record() as walk:
        network, control = (phantom.move_to_phantom(item, torch.float16) for item in networks)
        text = torch.empty(1, 77, 64, device=phantom.device())
        x = torch.empty(1, 4, 12, 20, device=phantom.device())
        tile_denoise = guidance.guided_denoiser(
            network, control, Conditioning(cond=text, uncond=text), torch.empty(1, 3, 48, 80, dtype=torch.uint8),
            resemblance=0.6, dynamic=6.0, timestep=lambda sigma: 1.5, factor=FACTOR, anchor=x,
            scaling=lambda sigma: statistics.scaling(sigma, 0.6, x.device),
        )  # fmt: skip
        denoise = multidiffusion.tiled_denoiser(tile_denoise, grid, batch=2)
        statistics.scaling(1.0, 1.0, x.device)  # the first use copies the statistics to the device
        with walk.at("sample"):
            noise = Noise(seed=1, shape=tuple(x.shape), device=x.device)
            dpmpp_3m_sde(denoise, x, (2.0, 1.0, 0.0), noise.step)
    loop = walk.of("sample")
    assert [event for event in loop if event.leaves or event.waits] == []
    sent = [event.tensors[0][2] for event in loop if event.arrives]
    assert sorted(sent) == sorted([(1, 3, 48, 48)] * len(grid.tiles(0)) + [(12, 12), (1, 4, 12, 20)])
