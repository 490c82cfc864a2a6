"""Hi-res fix pipeline from end to end, with small networks of the real classes in published file formats."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel

from hiresfix.engine import devices
from hiresfix.engine.analysis import colour_lock
from hiresfix.engine.analysis.metrics import Quality
from hiresfix.engine.diffusion import guidance, loader, pipeline
from hiresfix.engine.diffusion.offload import NetworkGroups
from hiresfix.engine.diffusion.prompts import LoraTag
from hiresfix.engine.diffusion.sampling import SAMPLERS
from hiresfix.engine.diffusion.vae import DEFAULT_BUDGET, Autoencoder
from hiresfix.engine.pixels import resampling
from hiresfix.engine.superres import networks
from hiresfix.engine.superres.networks import SRVGGNetCompact
from hiresfix.engine.upscaler import EngineResult, Upscaler
from hiresfix.engine.weights import superres_files
from hiresfix.errors import BadResult, Cancelled, ConfigurationError, WeightsError
from hiresfix.images import DecodedImage
from hiresfix.models.catalog import CLARITY, find_weights
from hiresfix.models.store import ModelStore
from hiresfix.recipe import Recipe
from tests.engine.weights.test_checkpoints import controlnet, ldm_controlnet, ldm_vae, prefixed, single_file, vae
from tests.sample_images import photo, smooth

CPU = torch.device("cpu")
SMALL = {"tile_height": 16, "tile_width": 16, "enlarger": "realesr-animevideov3", "steps": 3, "seed": 5}


@cache
def text_encoder() -> Any:
    """Create the smallest text encoder with CLIP's vocabulary."""
    torch.manual_seed(4)
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1
    )
    network: Any = CLIPTextModel(config)
    return network.eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Create a home folder with an installed checkpoint, ControlNet and LoRA."""
    home = tmp_path_factory.mktemp("home")
    files = tmp_path_factory.mktemp("files")
    text = prefixed("cond_stage_model.transformer.text_model.", text_encoder().state_dict())
    save_file(single_file(text=text), files / "checkpoint.safetensors")
    save_file(prefixed("control_model.", ldm_controlnet(controlnet())), files / "control.safetensors")
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, files / "more.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIRESFIX_HOME", str(home))
        store = ModelStore.at_home()
        for name in ("checkpoint", "control", "more"):
            store.add(files / f"{name}.safetensors", name=name, licence="test", commercial=True)
        yield home


@pytest.fixture(scope="module")
def upscaler(models: Path) -> Upscaler:
    return Upscaler("cpu")


def recipe(**changes: Any) -> Recipe:
    preset = replace(CLARITY.presets["clarity"], checkpoint="checkpoint", vae="", controlnet="control")
    return replace(preset, **{**SMALL, **changes})


def sample_image(width: int = 35, height: int = 10) -> DecodedImage:
    return DecodedImage(rgb=photo(width, height))


def run(upscaler: Upscaler, *, image: DecodedImage | None = None, **changes: Any) -> EngineResult:
    return upscaler.run(image or sample_image(), recipe(**changes), lambda fraction: None)


def pixels(result: EngineResult) -> NDArray[np.float64]:
    return result.image.rgb.astype(np.float64)


def difference(one: EngineResult, other: EngineResult) -> float:
    return float(np.abs(pixels(one) - pixels(other)).mean())


@pytest.mark.parametrize(("scale", "classic"), [(1, False), (2, True), (4, False), (8, False)])
def test_result_has_exact_size_and_metadata(upscaler: Upscaler, scale: int, classic: bool) -> None:
    result = run(upscaler, scale=scale, classic=classic, image=sample_image(13, 9))
    assert result.image.size == (13 * scale, 9 * scale)
    assert result.metadata["engine"] == ("clarity-classic" if classic else "clarity")
    assert [weight["name"] for weight in result.metadata["weights"]] == [
        "realesr-animevideov3",
        "checkpoint",
        "control",
    ]
    assert all(len(weight["sha256"]) == 64 for weight in result.metadata["weights"])
    assert set(result.metadata["quality"]) == {field.name for field in fields(Quality)}


def test_same_seed_gives_same_bytes(upscaler: Upscaler) -> None:
    one, again, other = run(upscaler), run(upscaler), run(upscaler, seed=6)
    np.testing.assert_array_equal(one.image.rgb, again.image.rgb)
    assert difference(one, other) > 0.1


@pytest.mark.parametrize(
    "change",
    [
        {"resemblance": 2.0},
        {"dynamic": 12.0},
        {"steps": 6},
        {"prompt": "moss on a rock"},
        {"negative_prompt": "blue"},
        {"sharpen": 5.0},
        {"creativity": 0.8},
        {"loras": (("more", 1.0),)},
        {"colour_lock": 0.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_parameter_has_an_effect(upscaler: Upscaler, change: dict[str, Any]) -> None:
    assert difference(run(upscaler), run(upscaler, **change)) > 0.01


UNCONSTRAINED: dict[str, Any] = {"colour_lock": 0.0, "creativity": 1.0, "image": DecodedImage(rgb=photo(20, 12))}
"""Parameters with which only the networks decide the result."""


def test_more_guidance_moves_further_from_unguided(upscaler: Upscaler) -> None:
    plain, *guided = (run(upscaler, **UNCONSTRAINED, dynamic=dynamic) for dynamic in (1.0, 2.0, 6.0, 20.0))
    distances = [difference(plain, one) for one in guided]
    assert distances == sorted(distances)
    assert distances[0] > 0.001
    assert distances[-1] > 2 * distances[0]


def test_negative_prompt_cancels_equal_prompt(upscaler: Upscaler) -> None:
    words: dict[str, Any] = {"prompt": "moss on a rock", "negative_prompt": "moss on a rock"}
    alone = run(upscaler, **UNCONSTRAINED, **words, dynamic=1.0)
    cancelled = run(upscaler, **UNCONSTRAINED, **words, dynamic=20.0)
    assert difference(alone, cancelled) < 0.05
    assert difference(alone, run(upscaler, **UNCONSTRAINED, prompt=words["prompt"], dynamic=20.0)) > 0.1


def test_more_resemblance_strengthens_control_image(upscaler: Upscaler) -> None:
    ignored, *followed = (
        run(upscaler, **UNCONSTRAINED, resemblance=resemblance) for resemblance in (0.0, 0.3, 1.0, 3.0)
    )
    distances = [difference(ignored, one) for one in followed]
    assert distances == sorted(distances)
    assert distances[-1] > 2 * distances[0] > 0


def test_more_steps_converge(upscaler: Upscaler) -> None:
    """A sampler without noise converges with more steps."""
    few, more, most = (run(upscaler, **UNCONSTRAINED, sampler="dpmpp-2m-karras", steps=steps) for steps in (2, 8, 40))
    assert difference(few, most) > 1.5 * difference(more, most)


def test_more_sharpening_increases_fine_contrast(upscaler: Upscaler) -> None:
    result = [pixels(run(upscaler, image=UNCONSTRAINED["image"], sharpen=sharpen)) for sharpen in (0.0, 2.0, 10.0)]
    roughness = [float(np.abs(np.diff(one, axis=1)).mean()) for one in result]
    assert roughness[0] < roughness[1] < roughness[2]


def test_end_of_long_prompt_has_an_effect(upscaler: Upscaler) -> None:
    long = "masterpiece, best quality, " * 370
    result, other = (run(upscaler, **UNCONSTRAINED, prompt=long + end) for end in ("moss", "a rock of gold"))
    assert len(long) > 9_900
    assert np.isfinite(pixels(result)).all()
    assert difference(result, other) > 0


def test_classic_feeds_upscale_network_blue_first() -> None:
    """A network that darkens its first channel shows which colour it got first."""
    network = constant_network(-0.2, 0.0)
    model = stand_in_model(NoNoiseUNet(), zero_prompt, PixelCodec())
    rgb = np.full((24, 20, 3), 128, np.uint8)
    for classic, darkest in ((True, 2), (False, 0)):
        settings = recipe(creativity=0.0, colour_lock=0.0, classic=classic)
        with torch.inference_mode():
            result = pipeline.run(model, network, rgb, settings, lambda fraction: None).rgb.astype(float)
        means = result.mean((0, 1))
        assert means.argmin() == darkest
        assert np.delete(means, darkest).min() - means[darkest] > 35


@pytest.mark.parametrize("classic", [False, True])
def test_cancel_stops_before_next_evaluation(upscaler: Upscaler, classic: bool) -> None:
    """A lost lease may be noticed at any moment; the engine checks after each batch of tiles."""
    run(upscaler)  # loads the model
    assert upscaler._loaded is not None
    unet = upscaler._loaded[1].model.unet
    calls: list[bool] = []

    def called(module: Any, args: Any) -> None:
        calls.append(len(calls) >= 5)  # the lease is lost before the sixth call

    def report(fraction: float) -> None:
        if calls and calls[-1]:
            raise Cancelled

    with unet.register_forward_pre_hook(called), pytest.raises(Cancelled):
        upscaler.run(sample_image(40, 30), recipe(scale=4, steps=30, creativity=1.0, classic=classic), report)
    assert sum(calls) == 1


def test_lora_of_one_job_is_gone_in_next(upscaler: Upscaler) -> None:
    before = run(upscaler)
    run(upscaler, loras=(("more", 1.0),))
    np.testing.assert_array_equal(run(upscaler).image.rgb, before.image.rgb)


def test_prompt_can_use_only_offered_loras(upscaler: Upscaler) -> None:
    plain = run(upscaler, prompt="a rock ")
    rejected = run(upscaler, prompt="a rock <lora:more:1>")
    np.testing.assert_array_equal(rejected.image.rgb, plain.image.rgb)
    assert any("not offered" in warning for warning in rejected.metadata["warnings"])
    assert rejected.metadata["loras"] == []
    offered = run(upscaler, prompt="a rock <lora:more:1:0.5>", offered_loras=("more",))
    assert offered.metadata["loras"] == [{"name": "more", "text_encoder": 1.0, "unet": 0.5}]
    assert offered.metadata["weights"][-1]["name"] == "more"
    assert len(offered.metadata["weights"][-1]["sha256"]) == 64
    assert difference(plain, offered) > 0.01


def test_offloading_gives_the_same_image(upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for the device; networks do not move, but activations are recorded."""
    image = sample_image(60, 40)
    whole = run(upscaler, image=image, colour_lock=0.0)
    assert upscaler._loaded is not None
    model = upscaler._loaded[1].model
    assert isinstance(model.codec, Autoencoder)
    groups = NetworkGroups(
        device=CPU, text=(text_encoder(),), denoising=(model.unet,), autoencoder=(model.codec.network,), tile=1 << 20
    )
    activations: list[Any] = []
    monkeypatch.setattr(devices, "free_bytes", lambda device: 9 << 20)
    monkeypatch.setattr(NetworkGroups, "activate", lambda self, active, plan: activations.append((active, plan)))
    network = upscaler._network("realesr-animevideov3")[1]
    planned = replace(model, network_groups=groups)
    with torch.inference_mode():
        result = pipeline.run(planned, network, image.rgb, recipe(colour_lock=0.0), lambda fraction: None)
    assert [active for active, _ in activations] == [
        groups.text,
        groups.autoencoder,
        groups.denoising,
        groups.autoencoder,
    ]
    assert all(plan.batch > 1 and plan.autoencoder_bytes < DEFAULT_BUDGET for _, plan in activations)
    assert np.abs(result.rgb.astype(int) - whole.image.rgb).max() <= 1


class PixelCodec:
    """A codec without a network: 4 x 4 pixels become the channels of one latent pixel."""

    factor, channels = 4, 48

    def __init__(self) -> None:
        self.truncated: list[bool] = []

    def encode(self, pixels: Any, report: Any) -> Tensor:
        x = resampling.to_tensor(pixels, CPU) * 2 - 1
        missing = (0, -x.shape[3] % 4, 0, -x.shape[2] % 4)
        return functional.pixel_unshuffle(functional.pad(x, missing, mode="replicate"), 4)

    def decode(self, latent: Tensor, out: Any, report: Any, *, truncate: bool = False) -> None:
        self.truncated.append(truncate)
        y = (functional.pixel_shuffle(latent, 4) + 1) / 2
        out[...] = resampling.to_samples(y[..., : out.shape[0], : out.shape[1]], out.dtype)


class NoNoiseUNet:
    """A UNet that predicts no noise, so all added noise stays."""

    device, dtype, num_upsamplers = CPU, torch.float32, 0

    def __init__(self) -> None:
        self.calls: list[tuple[float, tuple[int, ...]]] = []

    def __call__(self, sample: Tensor, t: Tensor, *args: Any, **options: Any) -> tuple[Tensor]:
        self.calls.append((round(t.item(), 2), tuple(sample.shape[2:])))
        return (torch.zeros_like(sample),)


ORIGINAL = [237.05, 152.39, 87.13, 44.13, 19.75, 7.60, 2.40]
EXACT = [230.07, 145.94, 82.24, 40.86, 17.86, 6.73, 1.92]


def stand_in_model(unet: Any, prompt_encoder: Any, codec: Any) -> pipeline.DiffusionModel:
    return pipeline.DiffusionModel(unet=unet, controlnet=None, prompt_encoder=prompt_encoder, codec=codec)


def constant_network(first: float = 0.2, others: float = 0.2) -> Any:
    """Create a network that repeats each pixel and adds a constant to its first channel and to the others."""
    network = SRVGGNetCompact(convs=1, features=4).eval()
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    last = [parameter for parameter in network.parameters() if parameter.dim() == 1][-1]
    last.data[:16], last.data[16:] = first, others
    return network


def record_guidance(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record the arguments of `guidance.guided_denoiser` in each pass."""
    calls: list[dict[str, Any]] = []
    genuine = guidance.guided_denoiser

    def guided(unet: Any, controlnet: Any, conditioning: Any, control_image: Tensor, **options: Any) -> Any:
        calls.append({"control_image": control_image, **options})
        return genuine(unet, controlnet, conditioning, control_image, **options)

    monkeypatch.setattr(guidance, "guided_denoiser", guided)
    return calls


@pytest.mark.parametrize(("classic", "timesteps", "tiles"), [(True, ORIGINAL, 6), (False, EXACT, 8)])
def test_classic_uses_original_levels_tiles_and_rounding(
    monkeypatch: pytest.MonkeyPatch, classic: bool, timesteps: list[float], tiles: int
) -> None:
    unet, codec, rgb = NoNoiseUNet(), PixelCodec(), photo(80, 64)
    model = stand_in_model(unet, zero_prompt, codec)
    calls, locked, halos = record_guidance(monkeypatch), [], list[bool]()

    def sharpened(rgb: Any, strength: float, *, classic: bool, device: torch.device) -> Any:
        halos.append(classic)
        return rgb

    monkeypatch.setattr(pipeline, "sharpen", sharpened)
    monkeypatch.setattr(colour_lock, "lock_colours", lambda *_, strength, device: locked.append(strength))
    settings = recipe(classic=classic, steps=18, tile_height=24, tile_width=16, dynamic=1.0, resemblance=0.7)
    with torch.inference_mode():
        pipeline.run(model, constant_network(), rgb, settings, lambda fraction: None)
    assert unet.calls == [(t, (24, 16)) for t in timesteps for _ in range(tiles)]
    assert codec.truncated == halos == [classic]
    assert locked == ([] if classic else [1.0])
    (guided,) = calls
    assert (guided["whole_control_image"], guided["resemblance"], guided["anchor"]) == (not classic, 0.7, None)


def test_control_image_is_input_unless_model_is_anchored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rgb, calls = photo(12, 10), record_guidance(monkeypatch)
    model = stand_in_model(NoNoiseUNet(), zero_prompt, PixelCodec())
    anchored = replace(model, prediction=replace(guidance.PREDICTIONS["epsilon"], anchored=True))
    for variant, network in (
        (model, constant_network(0, 0)),
        (model, constant_network()),
        (anchored, constant_network()),
    ):
        with torch.inference_mode():
            pipeline.run(variant, network, rgb, recipe(creativity=0.0), lambda fraction: None)
    plain, swapped, following = (guided["control_image"] for guided in calls)
    assert torch.equal(plain, swapped)
    framed = np.pad(rgb, ((0, 6), (0, 4), (0, 0)), mode="reflect")
    height, width = plain.shape[2:]
    assert torch.equal(plain, pipeline.make_control_image(framed, height, width, 2, CPU))
    assert float((following.float() - plain.float()).mean()) > 25
    assert calls[2]["anchor"] is not None


def test_classic_rounds_down_before_reducing() -> None:
    """Use a network that adds 0.9 of a level to each pixel."""
    rgb = np.full((24, 20, 3), 100, np.uint8)
    model = stand_in_model(NoNoiseUNet(), zero_prompt, PixelCodec())
    means = []
    for classic in (True, False):
        one = pipeline._Pass(
            model=model,
            upscale_network=constant_network(0.9 / 255, 0.9 / 255),
            recipe=recipe(classic=classic),
            sampler=SAMPLERS["euler"],
            conditioning=None,  # type: ignore[arg-type] # unused
            factor=2,
            creativity=0.0,
            seed=0,
        )
        with torch.inference_mode():
            means.append(one._upscale(rgb, lambda fraction: None).mean())
    assert means == [100, 101]


@pytest.mark.parametrize(("steps", "evaluations"), [(1, (1, 1)), (36, (36, 29))])
def test_progress_follows_work_of_steps_and_passes(steps: int, evaluations: tuple[int, int]) -> None:
    """For a canvas of 4 megapixels an evaluation of the published networks takes 75 TFLOP, the rest 112.2."""
    fractions: list[float] = []
    between: list[float] = []

    class RecordingCodec(PixelCodec):
        def encode(self, pixels: Any, report: Any) -> Tensor:
            report(1.0)
            between.append(fractions[-1])
            return super().encode(pixels, report)

        def decode(self, latent: Tensor, out: Any, report: Any, *, truncate: bool = False) -> None:
            report(0.0)
            between.append(fractions[-1])
            super().decode(latent, out, report, truncate=truncate)

    model = stand_in_model(NoNoiseUNet(), zero_prompt, RecordingCodec())
    with torch.inference_mode():
        settings = recipe(scale=4, steps=steps, creativity=1.0, sampler="euler", tile_height=64, tile_width=64)
        settings = replace(settings, colour_lock=0.0)
        pipeline.run(model, constant_network(), photo(24, 20), settings, fractions.append)
    work = [4**number * (112.2 + 75 * count) for number, count in enumerate(evaluations)]
    spent = [between[at + 1] - between[at] for at in (0, 2)]
    assert spent == pytest.approx([4**number * 75 * count / sum(work) for number, count in enumerate(evaluations)])
    assert between[1] < work[0] / sum(work) < between[2]


def test_non_finite_result_is_bad_result() -> None:
    class Broken(NoNoiseUNet):
        def __call__(self, sample: Tensor, t: Tensor, *args: Any, **options: Any) -> tuple[Tensor]:
            return (torch.full_like(sample, math.nan),)

    model = stand_in_model(Broken(), zero_prompt, PixelCodec())
    with torch.inference_mode(), pytest.raises(BadResult, match="The diffusion model returned non-finite values"):
        pipeline.run(model, constant_network(), photo(24, 20), recipe(), lambda fraction: None)


@pytest.mark.parametrize("side", [1, 3])
def test_tiny_images_keep_their_colour(side: int) -> None:
    """The mirrored extension around them has no effect."""
    rgb = np.full((side, side, 3), (128, 120, 136), np.uint8)
    model = stand_in_model(NoNoiseUNet(), zero_prompt, PixelCodec())
    with torch.inference_mode():
        result = pipeline.run(
            model, constant_network(0, 0), rgb, recipe(scale=8, creativity=0.1), lambda fraction: None
        ).rgb
    assert np.abs(result.reshape(-1, 3).mean(0) - rgb[0, 0]).max() < 3


@pytest.mark.parametrize("classic", [True, False])
def test_only_classic_sharpens_with_halos(classic: bool) -> None:
    edge = np.full((300, 8, 3), 100, np.uint8)
    edge[:, 4:] = 150
    result = pipeline.sharpen(edge.copy(), 5.0, classic=classic)
    assert ((result[1:-1].min(), result[1:-1].max()) == (100, 150)) is not classic
    assert (result[1:-1, 3] == result[1, 3]).all()  # bands give the result of the whole


def zero_prompt(text: str, loras: Any = ()) -> Tensor:
    """Encode any prompt as zeros."""
    return torch.zeros(1, 77, 8)


def test_noise_grows_with_creativity() -> None:
    network = networks.place(superres_files.load(find_weights("realesr-animevideov3") or Path()), CPU, torch.float32)
    model = pipeline.DiffusionModel(
        unet=NoNoiseUNet(),  # type: ignore[arg-type] # a stand-in
        controlnet=None,
        prompt_encoder=zero_prompt,  # type: ignore[arg-type] # as above
        codec=PixelCodec(),
    )

    def result(creativity: float) -> NDArray[np.float64]:
        settings = recipe(creativity=creativity, colour_lock=0.0, steps=18)
        with torch.inference_mode():
            return pipeline.run(model, network, photo(24, 20), settings, lambda fraction: None).rgb.astype(np.float64)

    results = [result(creativity) for creativity in (0.0, 0.2, 0.5, 1.0)]
    distances = [float(np.abs(result - results[0]).mean()) for result in results]
    assert distances == sorted(distances)
    assert distances[1] > 2
    assert distances[-1] > 3 * distances[1]


def test_colour_lock_ties_low_frequencies_to_input(upscaler: Upscaler) -> None:
    image = sample_image(80, 48)
    free, locked = (run(upscaler, colour_lock=strength, image=image) for strength in (0.0, 1.0))

    def miss(result: EngineResult) -> float:
        means = [
            array.astype(float).reshape(4, array.shape[0] // 4, 5, array.shape[1] // 5, 3).mean((1, 3))
            for array in (result.image.rgb, image.rgb)
        ]
        return float(np.abs(means[0] - means[1]).mean())

    assert miss(locked) < 0.35 * miss(free)


def test_back_projection_depends_on_creativity_and_resemblance(
    upscaler: Upscaler,
) -> None:
    """Use untrained networks."""
    image = DecodedImage(rgb=smooth(40, 24))
    default, *freer = (
        run(upscaler, image=image, **changes).metadata["quality"]
        for changes in ({}, {"creativity": 0.7}, {"creativity": 1.0}, {"resemblance": 0.3}, {"resemblance": 0.0})
    )
    assert default["drift_db"] >= 34
    assert default["ciede2000_mean"] <= 1
    assert default["ciede2000_p95"] <= 3
    assert default["shift_px"] <= 0.1
    drifts = [default["drift_db"], *(quality["drift_db"] for quality in freer)]
    assert drifts[0] > drifts[1] + 3 > drifts[2] + 6
    assert drifts[0] > drifts[3] + 3 > drifts[4] + 6


def test_classic_uses_no_back_projection(upscaler: Upscaler) -> None:
    free, locked = (run(upscaler, classic=True, colour_lock=strength) for strength in (0.0, 1.0))
    np.testing.assert_array_equal(free.image.rgb, locked.image.rgb)


def test_damaged_input_reduces_back_projection() -> None:
    default = recipe()
    clean, worn, ruined = (pipeline.back_projection_weights(default, severity) for severity in (0.0, 0.5, 1.0))
    assert clean > worn > ruined == []
    assert (
        pipeline.back_projection_weights(replace(default, resemblance=3.0), 1.0)
        == clean
        == pipeline.back_projection_weights(replace(default, creativity=0.0))
    )
    assert pipeline.back_projection_weights(replace(default, colour_lock=0.0)) == []


def test_16_bits_and_transparency_are_kept(upscaler: Upscaler) -> None:
    rgb = photo(20, 16).astype(np.uint16) * 257
    alpha = np.zeros((16, 20), np.uint16)
    alpha[4:12] = 65535
    result = run(upscaler, image=DecodedImage(rgb=rgb, alpha=alpha)).image
    assert result.rgb.dtype == np.uint16
    assert result.alpha is not None
    assert result.alpha.shape == (32, 40)
    assert len(np.unique(result.rgb)) > 300


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1), (3, 5)])
def test_tiny_and_narrow_images_work(upscaler: Upscaler, size: tuple[int, int]) -> None:
    assert run(upscaler, image=sample_image(*size)).image.size == (2 * size[0], 2 * size[1])


def test_progress_rises_and_cancel_works(upscaler: Upscaler) -> None:
    fractions: list[float] = []
    upscaler.run(sample_image(), recipe(scale=4), fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(fractions) > 12

    def stop(fraction: float) -> None:
        fractions.append(fraction)
        if fraction > 0.5:
            raise Cancelled

    fractions.clear()
    with pytest.raises(Cancelled):
        upscaler.run(sample_image(), recipe(scale=4), stop)
    assert fractions[-1] < 0.7


def test_later_passes_are_less_creative_with_own_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [pipeline.pass_factors(scale) for scale in (1, 2, 4, 8)] == [[1], [2], [2, 2], [2, 2, 2]]
    seen: list[tuple[float, int]] = []

    class Seen(Exception):
        """Stop after enough passes."""

    def note(self: Any, rgb: Any, report: Any) -> Any:
        seen.append((round(self.creativity, 4), self.seed))
        if len(seen) == 3:
            raise Seen
        return rgb, None

    monkeypatch.setattr(pipeline._Pass, "run", note)
    monkeypatch.setattr(pipeline, "_conditioning", lambda model, recipe: (None, (), ()))
    model = stand_in_model(NoNoiseUNet(), None, PixelCodec())
    with pytest.raises(Seen):
        pipeline.run(model, None, photo(4, 4), recipe(scale=8, creativity=0.5), lambda f: None)  # type: ignore[arg-type] # not used
    assert seen == [(0.5, 5), (0.4, 6), (0.32, 7)]


def test_control_image_is_upscaled_and_mirrored_input() -> None:
    rgb = photo(10, 600)
    control_image = pipeline.make_control_image(rgb, 1208, 24, 2, CPU)
    assert control_image.shape == (1, 3, 1208, 24)
    x = resampling.to_tensor(rgb, CPU)
    whole = functional.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False).clamp(0, 1)
    assert (
        control_image[..., :1200, :20] / 255 - whole
    ).abs().max() < 0.51 / 255  # bands give the result of the whole, up to 8-bit rounding
    torch.testing.assert_close(control_image[..., 1200:, :20], control_image[..., 1191:1199, :20].flip(2))
    torch.testing.assert_close(control_image[..., 20:], control_image[..., 15:19].flip(3))


def test_loader_uses_vae_embeddings_and_prediction_type(models: Path, tmp_path: Path) -> None:
    store = ModelStore.at_home()
    text = prefixed("cond_stage_model.transformer.text_model.", text_encoder().state_dict())
    save_file(single_file(text=text) | {"v_pred": torch.zeros(0)}, tmp_path / "velocity.safetensors")
    other = {name: value + 0.25 for name, value in ldm_vae(vae()).items()}
    save_file(other, tmp_path / "other.safetensors")
    save_file({"emb_params": torch.ones(2, 64)}, tmp_path / "dull.safetensors")
    for name in ("velocity", "other", "dull"):
        store.add(tmp_path / f"{name}.safetensors", name=name, licence="test", commercial=True)
    try:
        plain, changed = (
            loader.load_model(settings, store, device=CPU, dtype=torch.float32)
            for settings in (recipe(), recipe(checkpoint="velocity", vae="other", embeddings=("dull",)))
        )
        assert [file.name for file in changed.files] == ["velocity", "other", "control", "dull"]
        assert plain.model.prediction is guidance.PREDICTIONS["epsilon"]
        assert changed.model.prediction is guidance.PREDICTIONS["v_prediction"]
        biases = [result.model.codec.network.decoder.conv_out.bias for result in (plain, changed)]  # type: ignore[attr-defined] # an Autoencoder
        torch.testing.assert_close(biases[1], biases[0] + 0.25)
        assert not torch.allclose(plain.model.prompt_encoder("dull"), changed.model.prompt_encoder("dull"))
    finally:
        for name in ("velocity", "other", "dull"):
            store.remove(name)


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": "a"},
        {"vae": "a"},
        {"controlnet": "a"},
        {"embeddings": ("a",)},
        {"tile_width": 64},
        {"tile_height": 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_model_key_differs_for_different_networks(change: dict[str, Any]) -> None:
    assert loader.model_key(recipe()) == loader.model_key(recipe(prompt="a", seed=1, loras=(("a", 1.0),)))
    assert loader.model_key(recipe()) != loader.model_key(recipe(**change))


def test_embedding_names_go_into_negative_prompt() -> None:
    encoded: list[tuple[str, tuple[LoraTag, ...]]] = []

    def prompt_encoder(text: str, loras: tuple[LoraTag, ...]) -> Tensor:
        encoded.append((text, loras))
        return zero_prompt(text)

    model = stand_in_model(NoNoiseUNet(), prompt_encoder, PixelCodec())
    settings = recipe(
        prompt="a rock <lora:more:0.5:0.25>",
        negative_prompt="blurry <lora:more:1>",
        embeddings=("Bad-neg",),
        loras=(("always", 0.75),),
        offered_loras=("more",),
    )
    pipeline._conditioning(model, settings)
    loras = (
        LoraTag(name="always", text_encoder=0.75, unet=0.75),
        LoraTag(name="more", text_encoder=0.5, unet=0.25),
    )
    assert encoded == [("a rock ", loras), ("blurry <lora:more:1> Bad-neg", loras)]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"checkpoint": "nowhere"}, WeightsError, "not installed"),
        ({"checkpoint": "control"}, WeightsError, "is a controlnet"),
        ({"checkpoint": ""}, ConfigurationError, "no checkpoint"),
        ({"sampler": "magic"}, ConfigurationError, "dpmpp-3m-sde-karras"),
        ({"loras": (("nowhere", 1.0),)}, WeightsError, "not installed"),
        ({"enlarger": "nowhere"}, WeightsError, "not installed"),
    ],
)
def test_errors_name_missing_or_wrong_files(
    upscaler: Upscaler, change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run(upscaler, **change)
