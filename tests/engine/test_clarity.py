"""The hi-res fix from end to end, with small networks of the real classes read from files as they are published."""

from __future__ import annotations

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

from hiresfix.catalog import CLARITY, find_weights
from hiresfix.engine import clarity, memory, resampling, weights
from hiresfix.engine.esrgan import SRVGGNetCompact
from hiresfix.engine.fidelity import Quality
from hiresfix.engine.residence import Residents
from hiresfix.engine.upscaler import Upscaled, Upscaler
from hiresfix.engine.vae import BUDGET, Autoencoder
from hiresfix.errors import Cancelled, ConfigurationError, WeightsError
from hiresfix.images import Picture
from hiresfix.modelstore import Store
from hiresfix.recipe import Recipe
from tests.engine.test_checkpoints import controlnet, ldm_controlnet, prefixed, single_file
from tests.pictures import photo

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


def picture(width: int = 35, height: int = 10) -> Picture:
    return Picture(rgb=photo(width, height))


def run(upscaler: Upscaler, *, given: Picture | None = None, **changes: Any) -> Upscaled:
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


FREE: dict[str, Any] = {"colour_lock": 0.0, "creativity": 1.0, "given": Picture(rgb=photo(20, 12))}
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
    network = SRVGGNetCompact(convs=1, features=4).eval()
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    last = [parameter for parameter in network.parameters() if parameter.dim() == 1][-1]
    last.data[:16] = -0.2  # the sixteen places of the first channel in one pixel
    model = clarity.Model(unet=Deaf(), controlnet=None, conditioner=nothing, codec=Folded())  # type: ignore[arg-type] # stand-ins
    rgb = np.full((24, 20, 3), 128, np.uint8)
    for classic, darkest in ((True, 2), (False, 0)):
        wanted = recipe(creativity=0.0, colour_lock=0.0, classic=classic)
        with torch.inference_mode():
            made = clarity.run(model, network, rgb, wanted, lambda fraction: None).rgb.astype(float)
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
    offered = run(upscaler, prompt="a rock <lora:more:1>", offered_loras=("more",))
    assert difference(plain, offered) > 0.01


def test_a_device_too_small_for_all_networks_gives_the_same_picture(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host stands for the device; its networks need not move, but are asked for as they act."""
    given = picture(60, 40)
    whole = run(upscaler, given=given)
    assert upscaler._assembled is not None
    model = upscaler._assembled[1].model
    assert isinstance(model.codec, Autoencoder)
    those = Residents(
        device=CPU, text=(text_encoder(),), diffusing=(model.unet,), coding=(model.codec.network,), tile=1 << 20
    )
    acted: list[Any] = []
    monkeypatch.setattr(memory, "free_bytes", lambda device: 9 << 20)
    monkeypatch.setattr(Residents, "bring", lambda self, acting, made: acted.append((acting, made)))
    network = upscaler._network("realesr-animevideov3")[1]
    planned = replace(model, residents=those)
    with torch.inference_mode():
        made = clarity.run(planned, network, given.rgb, recipe(), lambda fraction: None)
    assert [acting for acting, _ in acted] == [those.text, those.coding, those.diffusing, those.coding]
    assert all(plan.batch > 1 and plan.section < BUDGET for _, plan in acted)
    assert np.abs(made.rgb.astype(int) - whole.picture.rgb).max() <= 1


class Folded:
    """A codec without a network: four by four pixels become the channels of one latent pixel."""

    factor, channels = 4, 48

    def encode(self, pixels: Any, report: Any) -> Tensor:
        x = resampling.to_tensor(pixels, CPU) * 2 - 1
        missing = (0, -x.shape[3] % 4, 0, -x.shape[2] % 4)
        return functional.pixel_unshuffle(functional.pad(x, missing, mode="replicate"), 4)

    def decode(self, latent: Tensor, out: Any, report: Any, *, truncate: bool = False) -> None:
        y = (functional.pixel_shuffle(latent, 4) + 1) / 2
        out[...] = resampling.to_samples(y[..., : out.shape[0], : out.shape[1]], out.dtype)


class Deaf:
    """A UNet that finds no noise, so all that was added stays."""

    device, dtype, num_upsamplers = CPU, torch.float32, 0

    def __call__(self, sample: Tensor, *args: Any, **options: Any) -> tuple[Tensor]:
        return (torch.zeros_like(sample),)


def nothing(text: str, loras: Any = ()) -> Tensor:
    """What any prompt says to `Deaf`."""
    return torch.zeros(1, 77, 8)


def test_more_creativity_adds_more_noise_and_none_is_added_below_the_least_step() -> None:
    network = memory.place(weights.load(find_weights("realesr-animevideov3") or Path()), CPU, torch.float32)
    model = clarity.Model(
        unet=Deaf(),  # type: ignore[arg-type] # a stand-in
        controlnet=None,
        conditioner=nothing,  # type: ignore[arg-type] # as above
        codec=Folded(),
    )

    def made(creativity: float) -> NDArray[np.float64]:
        wanted = recipe(creativity=creativity, colour_lock=0.0, steps=18)
        with torch.inference_mode():
            return clarity.run(model, network, photo(24, 20), wanted, lambda fraction: None).rgb.astype(np.float64)

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


def test_16_bits_and_transparency_stay(upscaler: Upscaler) -> None:
    rgb = photo(20, 16).astype(np.uint16) * 257
    alpha = np.zeros((16, 20), np.uint16)
    alpha[4:12] = 65535
    made = run(upscaler, given=Picture(rgb=rgb, alpha=alpha)).picture
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
    assert [clarity.passes(scale) for scale in (1, 2, 4, 8)] == [[1], [2], [2, 2], [2, 2, 2]]
    seen: list[tuple[float, int]] = []

    class Seen(Exception):
        """Enough was seen."""

    def note(self: Any, rgb: Any, report: Any) -> Any:
        seen.append((round(self.creativity, 4), self.seed))
        if len(seen) == 3:
            raise Seen
        return rgb, None

    monkeypatch.setattr(clarity._Pass, "run", note)
    monkeypatch.setattr(clarity, "_conditioning", lambda model, recipe: (None, ()))
    model = clarity.Model(unet=Deaf(), controlnet=None, conditioner=None, codec=Folded())  # type: ignore[arg-type] # stand-ins
    with pytest.raises(Seen):
        clarity.run(model, None, photo(4, 4), recipe(scale=8, creativity=0.5), lambda f: None)  # type: ignore[arg-type] # not used
    assert seen == [(0.5, 5), (0.4, 6), (0.32, 7)]


def test_the_hint_is_the_input_enlarged_and_mirrored_where_the_canvas_is_larger() -> None:
    rgb = photo(10, 600)
    hint = clarity.hint(rgb, 1208, 24, 2, CPU)
    assert hint.shape == (1, 3, 1208, 24)
    x = resampling.to_tensor(rgb, CPU)
    whole = functional.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False).clamp(0, 1)
    assert (hint[..., :1200, :20] / 255 - whole).abs().max() < 0.51 / 255  # in bands as in one, to 8 bits
    torch.testing.assert_close(hint[..., 1200:, :20], hint[..., 1191:1199, :20].flip(2))
    torch.testing.assert_close(hint[..., 20:], hint[..., 15:19].flip(3))


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
