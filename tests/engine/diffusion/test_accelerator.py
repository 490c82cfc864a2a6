"""What a job asks of a GPU, walked through on one that is not there: nothing in the loop may wait for it."""

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
from hiresfix.engine.diffusion.pipeline import Model
from hiresfix.engine.diffusion.prompts import Conditioner
from hiresfix.engine.diffusion.sampling import Noise, NoiseTable, Sampler, dpmpp_3m_sde
from hiresfix.engine.diffusion.vae import Autoencoder
from hiresfix.engine.superres.networks import SRVGGNetCompact
from hiresfix.models.catalog import CLARITY
from tests.engine import phantom
from tests.engine.diffusion.test_pipeline import text_encoder
from tests.engine.phantom import Event, Walk
from tests.engine.weights.test_checkpoints import controlnet, unet, vae
from tests.sample_images import photo

FACTOR = 4
HEIGHT, WIDTH = 24, 40  # of the picture; its latent of 12 x 20 has two tiles
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
        patch.setattr(devices, "QUEUING", (phantom.NAME,))
        yield patch


@pytest.fixture(scope="module")
def job(patch: pytest.MonkeyPatch) -> Walk:
    """A picture from bytes to bytes, at stages encode, sample, decode and measure; the UNet's calls are events, too."""
    networks = [copy.deepcopy(network) for network in (unet(), controlnet(), text_encoder(), vae())]
    enlarger = SRVGGNetCompact(convs=1, features=8)
    recipe = replace(CLARITY.presets["clarity"], loras=(), embeddings=(), seed=3, steps=3, sharpen=1.0)
    recipe = replace(recipe, tile_height=16, tile_width=16)
    table = NoiseTable.scaled_linear()
    with phantom.walk() as walk:
        patch.setattr(NoiseTable, "scaled_linear", lambda half: table)  # its numbers are needed
        for owner, name, stage in (
            (Sampler, "run", "sample"),
            (Autoencoder, "encode", "encode"),
            (Autoencoder, "decode", "decode"),
        ):
            patch.setattr(owner, name, staged(walk, stage, getattr(owner, name)))
        network, control, text, autoencoder = (phantom.onto(each, torch.float16) for each in networks)
        model = Model(
            unet=noted(walk, network),
            controlnet=control,
            conditioner=Conditioner(text),
            codec=Autoencoder(network=autoencoder),
            batch=4,
        )
        made = pipeline.run(
            model, phantom.onto(enlarger, torch.float16), photo(WIDTH, HEIGHT), recipe, lambda done: None
        )
        with walk.at("measure"):
            metrics.measure(made.rgb, photo(WIDTH, HEIGHT), device=phantom.device())
    assert made.rgb.shape == (2 * HEIGHT, 2 * WIDTH, 3)
    return walk


def staged(walk: Walk, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def at_stage(*given: Any, **named: Any) -> Any:
        with walk.at(stage):
            return work(*given, **named)

    return at_stage


def noted(walk: Walk, network: Any) -> Any:
    def note(module: Any, given: Sequence[Any]) -> None:
        sample, text = given[0], given[2]
        facts = tuple((each.device.type, each.dtype, tuple(each.shape)) for each in (sample, text))
        walk.events.append(Event(stage=walk.stage, name="unet", tensors=facts))

    network.register_forward_pre_hook(note)
    return network


def test_the_phantom_raises_where_operands_are_on_two_devices_and_notes_what_waits() -> None:
    with phantom.walk() as walk:
        x = torch.ones(2, device=phantom.device())
        with pytest.raises(RuntimeError, match="on the same device"):
            x + torch.ones(2)
        for wait in (lambda: x.sum().item(), lambda: x.cpu(), lambda: bool(x.any()), lambda: torch.ones(2).to(x)):
            before = len(walk.events)
            wait()
            assert [event.waits for event in walk.events[before:]].count(True) == 1
        torch.ones(2).pin_memory().to(x.device, non_blocking=True)
        assert not walk.events[-1].waits


def test_the_sampling_loop_reads_nothing_from_the_device_and_never_waits_for_it(job: Walk) -> None:
    loop = job.of("sample")
    assert [event.name for event in loop].count("unet") == EVALUATIONS
    assert [event for event in loop if event.leaves or event.waits] == []


def test_what_goes_to_the_device_in_the_loop_is_the_hint_the_tiles_weights_and_each_steps_noise(job: Walk) -> None:
    sent = [event.tensors[0][1:] for event in job.of("sample") if event.arrives]
    latent = (1, 4, 2 * HEIGHT // FACTOR, 2 * WIDTH // FACTOR)
    assert sent == [
        (torch.uint8, (1, 3, 2 * HEIGHT, 2 * WIDTH)),
        (torch.float32, (12, 16)),
        *[(torch.float32, latent)] * (EVALUATIONS - 1),
    ]


def test_tying_sharpening_and_measuring_leave_no_work_on_whole_pictures_to_the_host(job: Walk) -> None:
    work = ("_upsample_bicubic2d_aa", "avg_pool2d", "max_pool2d", "index_select")
    places = {(event.name, event.tensors[0][0]) for event in job.of("", "measure") if event.name in work}
    assert places == {(name, phantom.NAME) for name in work}


def test_networks_compute_in_half_precision_by_fused_attention_and_nothing_in_double(job: Walk) -> None:
    on_device = [event for event in job.events if any(device == phantom.NAME for device, _, _ in event.tensors)]
    assert not [event for event in on_device if any(dtype == torch.float64 for _, dtype, _ in event.tensors)]
    computed = [event for event in on_device if event.name in MATRICES and event.stage not in ("", "measure")]
    assert len(computed) > 200
    assert {dtype for event in computed for _, dtype, _ in event.tensors} == {torch.float16}
    for stage in ("sample", "encode", "decode"):
        names = [event.name for event in job.of(stage)]
        assert "scaled_dot_product_attention" in names
        assert not {"softmax", "_softmax", "bmm", "baddbmm"} & set(names)


def test_both_halves_of_all_tiles_are_one_call(job: Walk) -> None:
    calls = [event.tensors for event in job.of("sample") if event.name == "unet"]
    assert {(sample[2], text[2]) for sample, text in calls} == {((4, 4, 12, 16), (4, 77, 64))}


def test_the_autoencoder_waits_once_for_each_statistic_and_once_for_each_piece(job: Walk) -> None:
    reads = {
        stage: [event.name for event in job.of(stage) if event.waits and event.leaves] for stage in ("encode", "decode")
    }
    # The statistics before attention, whether all are numbers, and, of the decoder, the pixels.
    assert reads == {"encode": ["to", "is_nonzero"], "decode": ["to", "is_nonzero", "to"]}


def test_pictures_go_to_the_device_and_back_in_eight_bits(job: Walk) -> None:
    making = [event for event in job.events if event.stage != "measure"]  # which reads what it found
    moved = [event for event in making if event.arrives + event.leaves >= 3 * HEIGHT * WIDTH]
    pictures = [event.tensors[0][1] for event in moved if 3 in event.tensors[0][2]]
    assert len(pictures) >= 6
    assert set(pictures) == {torch.uint8}


def test_a_classic_grid_and_an_anchored_checkpoint_never_wait_either(patch: pytest.MonkeyPatch) -> None:
    networks = [copy.deepcopy(network) for network in (unet(), controlnet())]
    known = Preconditioning(variance=(1.0,) * 4, regression=(0.5,) * 4, residual=(0.5,) * 4)
    grid = multidiffusion.classic_grid(12, 20, tile_height=12, tile_width=12)
    with phantom.walk() as walk:
        network, control = (phantom.onto(each, torch.float16) for each in networks)
        text = torch.empty(1, 77, 64, device=phantom.device())
        x = torch.empty(1, 4, 12, 20, device=phantom.device())
        tile_denoise = guidance.guided(
            network, control, Conditioning(cond=text, uncond=text), torch.empty(1, 3, 48, 80, dtype=torch.uint8),
            resemblance=0.6, dynamic=6.0, timestep=lambda sigma: 1.5, factor=FACTOR, anchor=x,
            scaling=lambda sigma: known.scaling(sigma, 0.6, x.device),
        )  # fmt: skip
        denoise = multidiffusion.tiled(tile_denoise, grid, batch=2)
        known.scaling(1.0, 1.0, x.device)  # from the first use on, what was measured is on the device
        with walk.at("sample"):
            noise = Noise(seed=1, shape=tuple(x.shape), device=x.device)
            dpmpp_3m_sde(denoise, x, (2.0, 1.0, 0.0), noise.step)
    loop = walk.of("sample")
    assert [event for event in loop if event.leaves or event.waits] == []
    sent = [event.tensors[0][2] for event in loop if event.arrives]
    assert sorted(sent) == sorted([(1, 3, 48, 48)] * len(grid.tiles(0)) + [(12, 12), (1, 4, 12, 20)])
