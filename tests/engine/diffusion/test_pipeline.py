"""The hi-res fix from end to end, with small networks of the real classes read from files as they are published."""

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
from hiresfix.engine.diffusion.offload import Residents
from hiresfix.engine.diffusion.prompts import LoraTag
from hiresfix.engine.diffusion.sampling import SAMPLERS
from hiresfix.engine.diffusion.vae import BUDGET, Autoencoder
from hiresfix.engine.pixels import resampling
from hiresfix.engine.superres import networks
from hiresfix.engine.superres.networks import SRVGGNetCompact
from hiresfix.engine.upscaler import Upscaled, Upscaler
from hiresfix.engine.weights import superres_files
from hiresfix.errors import BadResult, Cancelled, ConfigurationError, WeightsError
from hiresfix.images import DecodedImage
from hiresfix.models.catalog import CLARITY, find_weights
from hiresfix.models.store import Store
from hiresfix.recipe import Recipe
from tests.engine.weights.test_checkpoints import controlnet, ldm_controlnet, ldm_vae, prefixed, single_file, vae
from tests.sample_images import photo, smooth

CPU = torch.device("cpu")
SMALL = {"tile_height": 16, "tile_width": 16, "enlarger": "realesr-animevideov3", "steps": 3, "seed": 5}


@cache
def text_encoder() -> Any:
    """As small as CLIP's own words allow."""
    torch.manual_seed(4)
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1
    )
    network: Any = CLIPTextModel(config)
    return network.eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a checkpoint, a ControlNet and a LoRA added as an operator adds them."""
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
        store = Store.at_home()
        for name in ("checkpoint", "control", "more"):
            store.add(files / f"{name}.safetensors", name=name, licence="test", commercial=True)
        yield home


@pytest.fixture(scope="module")
def upscaler(models: Path) -> Upscaler:
    return Upscaler("cpu")


def recipe(**changes: Any) -> Recipe:
    preset = replace(CLARITY.presets["clarity"], checkpoint="checkpoint", vae="", controlnet="control")
    return replace(preset, **{**SMALL, **changes})


def picture(width: int = 35, height: int = 10) -> DecodedImage:
    return DecodedImage(rgb=photo(width, height))


def run(upscaler: Upscaler, *, given: DecodedImage | None = None, **changes: Any) -> Upscaled:
    return upscaler.run(given or picture(), recipe(**changes), lambda fraction: None)


def pixels(made: Upscaled) -> NDArray[np.float64]:
    return made.picture.rgb.astype(np.float64)


def difference(one: Upscaled, other: Upscaled) -> float:
    return float(np.abs(pixels(one) - pixels(other)).mean())


@pytest.mark.parametrize(("scale", "classic"), [(1, False), (2, True), (4, False), (8, False)])
def test_the_result_is_exactly_so_many_times_as_large_and_says_what_made_it(
    upscaler: Upscaler, scale: int, classic: bool
) -> None:
    made = run(upscaler, scale=scale, classic=classic, given=picture(13, 9))
    assert made.picture.size == (13 * scale, 9 * scale)
    assert made.metadata["engine"] == ("clarity-classic" if classic else "clarity")
    assert [weight["name"] for weight in made.metadata["weights"]] == ["realesr-animevideov3", "checkpoint", "control"]
    assert all(len(weight["sha256"]) == 64 for weight in made.metadata["weights"])
    assert set(made.metadata["quality"]) == {field.name for field in fields(Quality)}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(upscaler: Upscaler) -> None:
    one, again, other = run(upscaler), run(upscaler), run(upscaler, seed=6)
    np.testing.assert_array_equal(one.picture.rgb, again.picture.rgb)
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
def test_every_parameter_acts(upscaler: Upscaler, change: dict[str, Any]) -> None:
    assert difference(run(upscaler), run(upscaler, **change)) > 0.01


FREE: dict[str, Any] = {"colour_lock": 0.0, "creativity": 1.0, "given": DecodedImage(rgb=photo(20, 12))}
"""Nothing but the networks decides."""


def test_more_guidance_goes_further_from_what_no_guidance_gives(upscaler: Upscaler) -> None:
    plain, *guided = (run(upscaler, **FREE, dynamic=dynamic) for dynamic in (1.0, 2.0, 6.0, 20.0))
    distances = [difference(plain, one) for one in guided]
    assert distances == sorted(distances)
    assert distances[0] > 0.001
    assert distances[-1] > 2 * distances[0]


def test_a_negative_prompt_takes_away_what_the_prompt_asks_for(upscaler: Upscaler) -> None:
    words: dict[str, Any] = {"prompt": "moss on a rock", "negative_prompt": "moss on a rock"}
    alone = run(upscaler, **FREE, **words, dynamic=1.0)
    cancelled = run(upscaler, **FREE, **words, dynamic=20.0)
    assert difference(alone, cancelled) < 0.05
    assert difference(alone, run(upscaler, **FREE, prompt=words["prompt"], dynamic=20.0)) > 0.1


def test_more_resemblance_lets_the_hint_say_more(upscaler: Upscaler) -> None:
    ignored, *followed = (run(upscaler, **FREE, resemblance=resemblance) for resemblance in (0.0, 0.3, 1.0, 3.0))
    distances = [difference(ignored, one) for one in followed]
    assert distances == sorted(distances)
    assert distances[-1] > 2 * distances[0] > 0


def test_more_steps_come_nearer_to_what_the_model_has_to_say(upscaler: Upscaler) -> None:
    """Without noise of its own a sampler has a limit, and steps are what it takes to get there."""
    few, more, most = (run(upscaler, **FREE, sampler="dpmpp-2m-karras", steps=steps) for steps in (2, 8, 40))
    assert difference(few, most) > 1.5 * difference(more, most)


def test_more_sharpening_makes_finer_detail_stand_out(upscaler: Upscaler) -> None:
    made = [pixels(run(upscaler, given=FREE["given"], sharpen=sharpen)) for sharpen in (0.0, 2.0, 10.0)]
    roughness = [float(np.abs(np.diff(one, axis=1)).mean()) for one in made]
    assert roughness[0] < roughness[1] < roughness[2]


def test_a_prompt_of_ten_thousand_characters_is_heard_to_its_end(upscaler: Upscaler) -> None:
    long = "masterpiece, best quality, " * 370
    made, other = (run(upscaler, **FREE, prompt=long + end) for end in ("moss", "a rock of gold"))
    assert len(long) > 9_900
    assert np.isfinite(pixels(made)).all()
    assert difference(made, other) > 0


def test_the_original_feeds_the_enlarger_blue_first() -> None:
    """A network that darkens its first channel tells which colour that was."""
    network = brighter(-0.2, 0.0)
    model = pipeline.Model(unet=Deaf(), controlnet=None, conditioner=nothing, codec=Folded())  # type: ignore[arg-type] # stand-ins
    rgb = np.full((24, 20, 3), 128, np.uint8)
    for classic, darkest in ((True, 2), (False, 0)):
        wanted = recipe(creativity=0.0, colour_lock=0.0, classic=classic)
        with torch.inference_mode():
            made = pipeline.run(model, network, rgb, wanted, lambda fraction: None).rgb.astype(float)
        means = made.mean((0, 1))
        assert means.argmin() == darkest
        assert np.delete(means, darkest).min() - means[darkest] > 35


@pytest.mark.parametrize("classic", [False, True])
def test_a_stop_is_heeded_before_the_next_evaluation(upscaler: Upscaler, classic: bool) -> None:
    """The worker notices a lost lease beside the engine, at any moment; the engine asks after each batch of tiles."""
    run(upscaler)  # loads the model
    assert upscaler._assembled is not None
    unet = upscaler._assembled[1].model.unet
    calls: list[bool] = []

    def called(module: Any, args: Any) -> None:
        calls.append(len(calls) >= 5)  # from the sixth on the job is not ours any more

    def report(fraction: float) -> None:
        if calls and calls[-1]:
            raise Cancelled

    with unet.register_forward_pre_hook(called), pytest.raises(Cancelled):
        upscaler.run(picture(40, 30), recipe(scale=4, steps=30, creativity=1.0, classic=classic), report)
    assert sum(calls) == 1


def test_a_lora_that_was_merged_for_one_job_is_out_of_the_next(upscaler: Upscaler) -> None:
    before = run(upscaler)
    run(upscaler, loras=(("more", 1.0),))
    np.testing.assert_array_equal(run(upscaler).picture.rgb, before.picture.rgb)


def test_a_prompt_can_name_only_the_loras_that_are_offered(upscaler: Upscaler) -> None:
    plain = run(upscaler, prompt="a rock ")
    refused = run(upscaler, prompt="a rock <lora:more:1>")
    np.testing.assert_array_equal(refused.picture.rgb, plain.picture.rgb)
    assert any("not offered" in warning for warning in refused.metadata["warnings"])
    assert refused.metadata["loras"] == []
    offered = run(upscaler, prompt="a rock <lora:more:1:0.5>", offered_loras=("more",))
    assert offered.metadata["loras"] == [{"name": "more", "text_encoder": 1.0, "unet": 0.5}]
    assert offered.metadata["weights"][-1]["name"] == "more"
    assert len(offered.metadata["weights"][-1]["sha256"]) == 64
    assert difference(plain, offered) > 0.01


def test_a_device_too_small_for_all_networks_gives_the_same_picture(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host stands for the device; its networks need not move, but are asked for as they act."""
    given = picture(60, 40)
    whole = run(upscaler, given=given, colour_lock=0.0)
    assert upscaler._assembled is not None
    model = upscaler._assembled[1].model
    assert isinstance(model.codec, Autoencoder)
    those = Residents(
        device=CPU, text=(text_encoder(),), diffusing=(model.unet,), coding=(model.codec.network,), tile=1 << 20
    )
    acted: list[Any] = []
    monkeypatch.setattr(devices, "free_bytes", lambda device: 9 << 20)
    monkeypatch.setattr(Residents, "bring", lambda self, acting, made: acted.append((acting, made)))
    network = upscaler._network("realesr-animevideov3")[1]
    planned = replace(model, residents=those)
    with torch.inference_mode():
        made = pipeline.run(planned, network, given.rgb, recipe(colour_lock=0.0), lambda fraction: None)
    assert [acting for acting, _ in acted] == [those.text, those.coding, those.diffusing, those.coding]
    assert all(plan.batch > 1 and plan.section < BUDGET for _, plan in acted)
    assert np.abs(made.rgb.astype(int) - whole.picture.rgb).max() <= 1


class Folded:
    """A codec without a network: four by four pixels become the channels of one latent pixel."""

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


class Deaf:
    """A UNet that finds no noise, so all that was added stays."""

    device, dtype, num_upsamplers = CPU, torch.float32, 0

    def __init__(self) -> None:
        self.asked: list[tuple[float, tuple[int, ...]]] = []

    def __call__(self, sample: Tensor, t: Tensor, *args: Any, **options: Any) -> tuple[Tensor]:
        self.asked.append((round(t.item(), 2), tuple(sample.shape[2:])))
        return (torch.zeros_like(sample),)


ORIGINAL = [237.05, 152.39, 87.13, 44.13, 19.75, 7.60, 2.40]
EXACT = [230.07, 145.94, 82.24, 40.86, 17.86, 6.73, 1.92]


def brighter(first: float = 0.2, others: float = 0.2) -> Any:
    """A network that repeats each pixel and adds so much to its first channel and to the others."""
    network = SRVGGNetCompact(convs=1, features=4).eval()
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    last = [parameter for parameter in network.parameters() if parameter.dim() == 1][-1]
    last.data[:16], last.data[16:] = first, others
    return network


def heard(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each pass asks of `guidance.guided`."""
    asked: list[dict[str, Any]] = []
    genuine = guidance.guided

    def guided(unet: Any, controlnet: Any, conditioning: Any, hint: Tensor, **options: Any) -> Any:
        asked.append({"hint": hint, **options})
        return genuine(unet, controlnet, conditioning, hint, **options)

    monkeypatch.setattr(guidance, "guided", guided)
    return asked


@pytest.mark.parametrize(("classic", "timesteps", "tiles"), [(True, ORIGINAL, 6), (False, EXACT, 8)])
def test_the_original_has_levels_tiles_and_rounding_of_its_own_and_locks_no_colours(
    monkeypatch: pytest.MonkeyPatch, classic: bool, timesteps: list[float], tiles: int
) -> None:
    unet, codec, rgb = Deaf(), Folded(), photo(80, 64)
    model = pipeline.Model(unet=unet, controlnet=None, conditioner=nothing, codec=codec)  # type: ignore[arg-type] # stand-ins
    asked, locked, halos = heard(monkeypatch), [], list[bool]()

    def sharpened(rgb: Any, strength: float, *, classic: bool, device: torch.device) -> Any:
        halos.append(classic)
        return rgb

    monkeypatch.setattr(pipeline, "sharpened", sharpened)
    monkeypatch.setattr(colour_lock, "lock_colours", lambda *_, strength, device: locked.append(strength))
    wanted = recipe(classic=classic, steps=18, tile_height=24, tile_width=16, dynamic=1.0, resemblance=0.7)
    with torch.inference_mode():
        pipeline.run(model, brighter(), rgb, wanted, lambda fraction: None)
    assert unet.asked == [(t, (24, 16)) for t in timesteps for _ in range(tiles)]
    assert codec.truncated == halos == [classic]
    assert locked == ([] if classic else [1.0])
    (guided,) = asked
    assert (guided["whole_hint"], guided["resemblance"], guided["anchor"]) == (not classic, 0.7, None)


def test_the_hint_is_the_passs_input_whatever_the_enlarger_but_for_a_model_that_starts_from_the_enlargement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rgb, asked = photo(12, 10), heard(monkeypatch)
    model = pipeline.Model(unet=Deaf(), controlnet=None, conditioner=nothing, codec=Folded())  # type: ignore[arg-type] # stand-ins
    anchored = replace(model, prediction=replace(guidance.PREDICTIONS["epsilon"], anchored=True))
    for made_by, enlarger in ((model, brighter(0, 0)), (model, brighter()), (anchored, brighter())):
        with torch.inference_mode():
            pipeline.run(made_by, enlarger, rgb, recipe(creativity=0.0), lambda fraction: None)
    plain, swapped, following = (guided["hint"] for guided in asked)
    assert torch.equal(plain, swapped)
    framed = np.pad(rgb, ((0, 6), (0, 4), (0, 0)), mode="reflect")
    height, width = plain.shape[2:]
    assert torch.equal(plain, pipeline.hint(framed, height, width, 2, CPU))
    assert float((following.float() - plain.float()).mean()) > 25
    assert asked[2]["anchor"] is not None


def test_the_original_rounds_the_enlargement_down_before_it_is_reduced() -> None:
    """A network that adds nine tenths of a level to each pixel, seen through a model that changes nothing."""
    rgb = np.full((24, 20, 3), 100, np.uint8)
    model = pipeline.Model(unet=Deaf(), controlnet=None, conditioner=nothing, codec=Folded())  # type: ignore[arg-type] # stand-ins
    means = []
    for classic in (True, False):
        one = pipeline._Pass(
            model=model,
            enlarger=brighter(0.9 / 255, 0.9 / 255),
            recipe=recipe(classic=classic),
            sampler=SAMPLERS["euler"],
            conditioning=None,  # type: ignore[arg-type] # not heard
            factor=2,
            creativity=0.0,
            seed=0,
        )
        with torch.inference_mode():
            means.append(one._enlarged(rgb, lambda fraction: None).mean())
    assert means == [100, 101]


@pytest.mark.parametrize(("steps", "evaluations"), [(1, (1, 1)), (36, (36, 29))])
def test_progress_is_by_work_evaluations_count_by_their_number_and_passes_by_their_pixels(
    steps: int, evaluations: tuple[int, int]
) -> None:
    """For a canvas of 4 megapixels an evaluation is 75 TFLOP by the published networks, and all the rest 112.2."""
    told: list[float] = []
    between: list[float] = []

    class Watched(Folded):
        def encode(self, pixels: Any, report: Any) -> Tensor:
            report(1.0)
            between.append(told[-1])
            return super().encode(pixels, report)

        def decode(self, latent: Tensor, out: Any, report: Any, *, truncate: bool = False) -> None:
            report(0.0)
            between.append(told[-1])
            super().decode(latent, out, report, truncate=truncate)

    model = pipeline.Model(unet=Deaf(), controlnet=None, conditioner=nothing, codec=Watched())  # type: ignore[arg-type] # stand-ins
    with torch.inference_mode():
        wanted = recipe(scale=4, steps=steps, creativity=1.0, sampler="euler", tile_height=64, tile_width=64)
        wanted = replace(wanted, colour_lock=0.0)
        pipeline.run(model, brighter(), photo(24, 20), wanted, told.append)
    work = [4**number * (112.2 + 75 * count) for number, count in enumerate(evaluations)]
    spent = [between[at + 1] - between[at] for at in (0, 2)]
    assert spent == pytest.approx([4**number * 75 * count / sum(work) for number, count in enumerate(evaluations)])
    assert between[1] < work[0] / sum(work) < between[2]


def test_a_model_that_gives_no_numbers_is_a_bad_result_which_gets_another_try_in_full_precision() -> None:
    class Broken(Deaf):
        def __call__(self, sample: Tensor, t: Tensor, *args: Any, **options: Any) -> tuple[Tensor]:
            return (torch.full_like(sample, math.nan),)

    model = pipeline.Model(unet=Broken(), controlnet=None, conditioner=nothing, codec=Folded())  # type: ignore[arg-type] # stand-ins
    with torch.inference_mode(), pytest.raises(BadResult, match="The diffusion model gave values that are no numbers"):
        pipeline.run(model, brighter(), photo(24, 20), recipe(), lambda fraction: None)


@pytest.mark.parametrize("side", [1, 3])
def test_the_smallest_pictures_keep_their_colour_though_the_canvas_is_larger(side: int) -> None:
    """What is mirrored round them to fill it is not looked at."""
    rgb = np.full((side, side, 3), (128, 120, 136), np.uint8)
    model = pipeline.Model(unet=Deaf(), controlnet=None, conditioner=nothing, codec=Folded())  # type: ignore[arg-type] # stand-ins
    with torch.inference_mode():
        made = pipeline.run(model, brighter(0, 0), rgb, recipe(scale=8, creativity=0.1), lambda fraction: None).rgb
    assert np.abs(made.reshape(-1, 3).mean(0) - rgb[0, 0]).max() < 3


@pytest.mark.parametrize("classic", [True, False])
def test_only_the_original_sharpens_with_halos(classic: bool) -> None:
    edge = np.full((300, 8, 3), 100, np.uint8)
    edge[:, 4:] = 150
    made = pipeline.sharpened(edge.copy(), 5.0, classic=classic)
    assert ((made[1:-1].min(), made[1:-1].max()) == (100, 150)) is not classic
    assert (made[1:-1, 3] == made[1, 3]).all()  # in bands as in one


def nothing(text: str, loras: Any = ()) -> Tensor:
    """What any prompt says to `Deaf`."""
    return torch.zeros(1, 77, 8)


def test_more_creativity_adds_more_noise_and_none_is_added_below_the_least_step() -> None:
    network = networks.place(superres_files.load(find_weights("realesr-animevideov3") or Path()), CPU, torch.float32)
    model = pipeline.Model(
        unet=Deaf(),  # type: ignore[arg-type] # a stand-in
        controlnet=None,
        conditioner=nothing,  # type: ignore[arg-type] # as above
        codec=Folded(),
    )

    def made(creativity: float) -> NDArray[np.float64]:
        wanted = recipe(creativity=creativity, colour_lock=0.0, steps=18)
        with torch.inference_mode():
            return pipeline.run(model, network, photo(24, 20), wanted, lambda fraction: None).rgb.astype(np.float64)

    results = [made(creativity) for creativity in (0.0, 0.2, 0.5, 1.0)]
    distances = [float(np.abs(result - results[0]).mean()) for result in results]
    assert distances == sorted(distances)
    assert distances[1] > 2
    assert distances[-1] > 3 * distances[1]


def test_the_colour_lock_ties_low_frequencies_to_the_input(upscaler: Upscaler) -> None:
    given = picture(80, 48)
    free, locked = (run(upscaler, colour_lock=strength, given=given) for strength in (0.0, 1.0))

    def miss(made: Upscaled) -> float:
        means = [
            array.astype(float).reshape(4, array.shape[0] // 4, 5, array.shape[1] // 5, 3).mean((1, 3))
            for array in (made.picture.rgb, given.rgb)
        ]
        return float(np.abs(means[0] - means[1]).mean())

    assert miss(locked) < 0.35 * miss(free)


def test_what_the_input_shows_is_tied_at_the_defaults_and_freed_by_creativity_and_less_resemblance(
    upscaler: Upscaler,
) -> None:
    """With networks that know nothing of pictures."""
    given = DecodedImage(rgb=smooth(40, 24))
    default, *freer = (
        run(upscaler, given=given, **changes).metadata["quality"]
        for changes in ({}, {"creativity": 0.7}, {"creativity": 1.0}, {"resemblance": 0.3}, {"resemblance": 0.0})
    )
    assert default["drift_db"] >= 34
    assert default["ciede2000_mean"] <= 1
    assert default["ciede2000_p95"] <= 3
    assert default["shift_px"] <= 0.1
    drifts = [default["drift_db"], *(quality["drift_db"] for quality in freer)]
    assert drifts[0] > drifts[1] + 3 > drifts[2] + 6
    assert drifts[0] > drifts[3] + 3 > drifts[4] + 6


def test_the_classic_preset_ties_nothing(upscaler: Upscaler) -> None:
    free, locked = (run(upscaler, classic=True, colour_lock=strength) for strength in (0.0, 1.0))
    np.testing.assert_array_equal(free.picture.rgb, locked.picture.rgb)


def test_a_damaged_input_is_tied_by_its_colours_unless_more_is_asked_for() -> None:
    default = recipe()
    clean, worn, ruined = (pipeline.tie(default, severity) for severity in (0.0, 0.5, 1.0))
    assert clean > worn > ruined == []
    assert (
        pipeline.tie(replace(default, resemblance=3.0), 1.0) == clean == pipeline.tie(replace(default, creativity=0.0))
    )
    assert pipeline.tie(replace(default, colour_lock=0.0)) == []


def test_16_bits_and_transparency_stay(upscaler: Upscaler) -> None:
    rgb = photo(20, 16).astype(np.uint16) * 257
    alpha = np.zeros((16, 20), np.uint16)
    alpha[4:12] = 65535
    made = run(upscaler, given=DecodedImage(rgb=rgb, alpha=alpha)).picture
    assert made.rgb.dtype == np.uint16
    assert made.alpha is not None
    assert made.alpha.shape == (32, 40)
    assert len(np.unique(made.rgb)) > 300


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1), (3, 5)])
def test_the_smallest_and_the_narrowest_pictures_come_out_whole(upscaler: Upscaler, size: tuple[int, int]) -> None:
    assert run(upscaler, given=picture(*size)).picture.size == (2 * size[0], 2 * size[1])


def test_progress_rises_to_the_end_and_a_stop_is_heeded(upscaler: Upscaler) -> None:
    told: list[float] = []
    upscaler.run(picture(), recipe(scale=4), told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(told) > 12

    def stop(fraction: float) -> None:
        told.append(fraction)
        if fraction > 0.5:
            raise Cancelled

    told.clear()
    with pytest.raises(Cancelled):
        upscaler.run(picture(), recipe(scale=4), stop)
    assert told[-1] < 0.7


def test_passes_are_twos_each_less_creative_with_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [pipeline.passes(scale) for scale in (1, 2, 4, 8)] == [[1], [2], [2, 2], [2, 2, 2]]
    seen: list[tuple[float, int]] = []

    class Seen(Exception):
        """Enough was seen."""

    def note(self: Any, rgb: Any, report: Any) -> Any:
        seen.append((round(self.creativity, 4), self.seed))
        if len(seen) == 3:
            raise Seen
        return rgb, None

    monkeypatch.setattr(pipeline._Pass, "run", note)
    monkeypatch.setattr(pipeline, "_conditioning", lambda model, recipe: (None, (), ()))
    model = pipeline.Model(unet=Deaf(), controlnet=None, conditioner=None, codec=Folded())  # type: ignore[arg-type] # stand-ins
    with pytest.raises(Seen):
        pipeline.run(model, None, photo(4, 4), recipe(scale=8, creativity=0.5), lambda f: None)  # type: ignore[arg-type] # not used
    assert seen == [(0.5, 5), (0.4, 6), (0.32, 7)]


def test_the_hint_is_the_input_enlarged_and_mirrored_where_the_canvas_is_larger() -> None:
    rgb = photo(10, 600)
    hint = pipeline.hint(rgb, 1208, 24, 2, CPU)
    assert hint.shape == (1, 3, 1208, 24)
    x = resampling.to_tensor(rgb, CPU)
    whole = functional.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False).clamp(0, 1)
    assert (hint[..., :1200, :20] / 255 - whole).abs().max() < 0.51 / 255  # in bands as in one, to 8 bits
    torch.testing.assert_close(hint[..., 1200:, :20], hint[..., 1191:1199, :20].flip(2))
    torch.testing.assert_close(hint[..., 20:], hint[..., 15:19].flip(3))


def test_the_vae_and_the_embeddings_of_a_recipe_and_the_checkpoints_prediction_are_those_used(
    models: Path, tmp_path: Path
) -> None:
    store = Store.at_home()
    text = prefixed("cond_stage_model.transformer.text_model.", text_encoder().state_dict())
    save_file(single_file(text=text) | {"v_pred": torch.zeros(0)}, tmp_path / "velocity.safetensors")
    other = {name: value + 0.25 for name, value in ldm_vae(vae()).items()}
    save_file(other, tmp_path / "other.safetensors")
    save_file({"emb_params": torch.ones(2, 64)}, tmp_path / "dull.safetensors")
    for name in ("velocity", "other", "dull"):
        store.add(tmp_path / f"{name}.safetensors", name=name, licence="test", commercial=True)
    try:
        plain, changed = (
            loader.assemble(wanted, store, device=CPU, dtype=torch.float32)
            for wanted in (recipe(), recipe(checkpoint="velocity", vae="other", embeddings=("dull",)))
        )
        assert [file.name for file in changed.files] == ["velocity", "other", "control", "dull"]
        assert plain.model.prediction is guidance.PREDICTIONS["epsilon"]
        assert changed.model.prediction is guidance.PREDICTIONS["v_prediction"]
        biases = [made.model.codec.network.decoder.conv_out.bias for made in (plain, changed)]  # type: ignore[attr-defined] # an Autoencoder
        torch.testing.assert_close(biases[1], biases[0] + 0.25)
        assert not torch.allclose(plain.model.conditioner("dull"), changed.model.conditioner("dull"))
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
def test_recipes_share_networks_only_if_nothing_of_them_differs(change: dict[str, Any]) -> None:
    assert loader.key(recipe()) == loader.key(recipe(prompt="a", seed=1, loras=(("a", 1.0),)))
    assert loader.key(recipe()) != loader.key(recipe(**change))


def test_embeddings_are_words_of_the_negative_prompt() -> None:
    said: list[tuple[str, tuple[LoraTag, ...]]] = []

    def conditioner(text: str, loras: tuple[LoraTag, ...]) -> Tensor:
        said.append((text, loras))
        return nothing(text)

    model = pipeline.Model(unet=Deaf(), controlnet=None, conditioner=conditioner, codec=Folded())  # type: ignore[arg-type] # stand-ins
    wanted = recipe(
        prompt="a rock <lora:more:0.5:0.25>",
        negative_prompt="blurry <lora:more:1>",
        embeddings=("Bad-neg",),
        loras=(("always", 0.75),),
        offered_loras=("more",),
    )
    pipeline._conditioning(model, wanted)
    loras = (
        LoraTag(name="always", text_encoder=0.75, unet=0.75),
        LoraTag(name="more", text_encoder=0.5, unet=0.25),
    )
    assert said == [("a rock ", loras), ("blurry <lora:more:1> Bad-neg", loras)]


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
def test_what_is_missing_or_wrong_is_named(
    upscaler: Upscaler, change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run(upscaler, **change)
