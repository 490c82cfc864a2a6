"""LoRA: arithmetic against the written-out formula, names of every training script, and files that do not fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hiresfix.engine.weights.lora import LoraMerger, LoraUse, load_lora
from hiresfix.errors import WeightsError
from tests.engine.weights import test_checkpoints as small

Tensors = dict[str, Tensor]

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
PROJECTION = "up_blocks.1.attentions.0.proj_in"  # a 1x1 convolution
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
TEXT = "encoder.layers.1.mlp.fc2"
LAYERS = {
    LINEAR: "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    OUT: "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
    PROJECTION: "lora_unet_up_blocks_1_attentions_0_proj_in",
    CONVOLUTION: "lora_unet_down_blocks_0_resnets_0_conv1",
    TEXT: "lora_te_text_model_encoder_layers_1_mlp_fc2",
}


@cache
def networks() -> tuple[Any, Any]:
    """Build the networks once: the fixture checks that every test restores them."""
    return small.unet(), small.text_encoder()


class Bench:
    """The two networks, their original weights, and checks of their current ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unet, self.text = networks()
        self.before = self.weights()
        self.merger = LoraMerger(self.unet, self.text)

    def weights(self) -> Tensors:
        return {name: tensor.clone() for net in (self.unet, self.text) for name, tensor in net.state_dict().items()}

    def write(self, state: Tensors, name: str = "a") -> Path:
        path = self.folder / f"{name}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
        return path

    def use(self, state: Tensors, unet: float = 1.0, text: float = 1.0, *, name: str = "a") -> LoraUse:
        return LoraUse(lora=load_lora(self.write(state, name)), unet=unet, text=text)

    def assert_changed_by(self, changes: dict[str, Tensor]) -> None:
        """Check that each weight is its original plus this, and that the others did not change by a bit."""
        now = self.weights()
        assert now.keys() == self.before.keys()
        for name, tensor in now.items():
            layer = name.removesuffix(".weight")
            if layer in changes:
                torch.testing.assert_close(tensor, self.before[name] + changes[layer], rtol=1e-6, atol=2e-6)
                assert not tensor.equal(self.before[name])
            else:
                assert tensor.equal(self.before[name]), name


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    bench = Bench(tmp_path)
    yield bench
    bench.merger.restore()
    bench.assert_changed_by({})


def factors(layer: str, prefix: str, *, rank: int = 3, alpha: float | None = 6.0, seed: int = 0) -> Tensors:
    """Return random factors for a layer of the small networks, with kohya's names."""
    weight = dict((*networks()[0].state_dict().items(), *networks()[1].state_dict().items()))[f"{layer}.weight"]
    generator = torch.Generator().manual_seed(seed + len(layer))
    outputs, inputs, *kernel = weight.shape
    state = {
        f"{prefix}.lora_up.weight": torch.randn(outputs, rank, *(1 for _ in kernel), generator=generator),
        f"{prefix}.lora_down.weight": torch.randn(rank, inputs, *kernel, generator=generator),
    }
    return state | ({} if alpha is None else {f"{prefix}.alpha": torch.tensor(alpha)})


def product(state: Tensors, prefix: str) -> Tensor:
    """Return up·down, index by index."""
    up, down = state[f"{prefix}.lora_up.weight"], state[f"{prefix}.lora_down.weight"]
    if up.dim() == 2:
        return torch.einsum("or,ri->oi", up, down)
    return torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)


@pytest.mark.parametrize("layer", LAYERS)
def test_merge_adds_scaled_product_of_factors(bench: Bench, layer: str) -> None:
    state = factors(layer, LAYERS[layer])
    assert bench.merger.merge([bench.use(state, 0.5, 0.5)]) == ()
    bench.assert_changed_by({layer: 0.5 * (6 / 3) * product(state, LAYERS[layer])})


def test_cp_convolution_uses_its_middle_factor(bench: Bench) -> None:
    prefix = LAYERS[CONVOLUTION]
    up, mid, down = torch.randn(32, 3, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(3, 32, 1, 1)
    state = {f"{prefix}.lora_up.weight": up, f"{prefix}.lora_mid.weight": mid, f"{prefix}.lora_down.weight": down}
    bench.merger.merge([bench.use(state)])
    x = torch.randn(1, 32, 5, 5)
    before, bias = bench.before[f"{CONVOLUTION}.weight"], bench.before[f"{CONVOLUTION}.bias"]
    conv = torch.nn.functional.conv2d
    added = conv(conv(conv(x, down), mid, padding=1), up)
    now = bench.unet.get_submodule(CONVOLUTION)(x)
    torch.testing.assert_close(now, conv(x, before, bias, padding=1) + added, rtol=1e-4, atol=1e-3)


def test_scale_defaults_to_one(bench: Bench) -> None:
    prefix = LAYERS[LINEAR]
    state = factors(LINEAR, prefix, alpha=None)
    bench.merger.merge([bench.use(state)])
    bench.assert_changed_by({LINEAR: product(state, prefix)})
    state = factors(LINEAR, prefix) | {f"{prefix}.scale": torch.tensor([0.25])}
    bench.merger.merge([bench.use(state, name="b")])
    bench.assert_changed_by({LINEAR: 0.25 * product(state, prefix)})


def test_unet_and_text_encoder_have_separate_multipliers(bench: Bench) -> None:
    state = factors(LINEAR, LAYERS[LINEAR]) | factors(TEXT, LAYERS[TEXT])
    bench.merger.merge([bench.use(state, unet=0.5, text=-0.25)])
    bench.assert_changed_by(
        {LINEAR: 0.5 * 2 * product(state, LAYERS[LINEAR]), TEXT: -0.25 * 2 * product(state, LAYERS[TEXT])}
    )
    bench.merger.merge([bench.use(state, unet=0.5, text=0)])
    bench.assert_changed_by({LINEAR: 0.5 * 2 * product(state, LAYERS[LINEAR])})
    bench.merger.merge([bench.use(state, unet=0, text=0)])
    bench.assert_changed_by({})


def test_merge_order_is_irrelevant_and_last_call_counts(bench: Bench) -> None:
    states = [factors(LINEAR, LAYERS[LINEAR], seed=seed) for seed in range(3)]
    uses = [bench.use(state, 0.3 + index, name=f"{index}") for index, state in enumerate(states)]
    bench.merger.merge(uses)
    forward = bench.weights()
    bench.assert_changed_by(
        {LINEAR: sum((0.3 + index) * 2 * product(s, LAYERS[LINEAR]) for index, s in enumerate(states))}  # type: ignore[dict-item] # of three tensors
    )
    bench.merger.merge([])
    bench.assert_changed_by({})
    bench.merger.merge(uses[::-1])
    assert all(tensor.equal(forward[name]) for name, tensor in bench.weights().items())
    bench.merger.merge(uses[:1])
    bench.assert_changed_by({LINEAR: 0.3 * 2 * product(states[0], LAYERS[LINEAR])})


def test_half_precision_rounds_once_and_restores_exactly(tmp_path: Path) -> None:
    unet, text = small.unet(), small.text_encoder()
    halves = [type(unet).from_config(unet.config).half(), type(text)(text.config).half()]
    merger = LoraMerger(*halves)
    before = [{name: tensor.clone() for name, tensor in net.state_dict().items()} for net in halves]
    state = factors(LINEAR, LAYERS[LINEAR])
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    merger.merge([LoraUse(lora=load_lora(path), unet=0.7, text=0.7)])
    exact = before[0][f"{LINEAR}.weight"].double() + 0.7 * 2 * product(state, LAYERS[LINEAR]).double()
    assert halves[0].get_submodule(LINEAR).weight.equal(exact.float().half())
    merger.restore()
    for net, kept in zip(halves, before, strict=True):
        assert all(tensor.equal(kept[name]) for name, tensor in net.state_dict().items())


SPELLINGS: dict[str, Callable[[str], str]] = {
    "diffusers' layers": lambda layer: LAYERS[layer],
    "LDM's layers": lambda layer: {
        LINEAR: "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q",
        OUT: "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_out_0",
        PROJECTION: "lora_unet_output_blocks_2_1_proj_in",
        CONVOLUTION: "lora_unet_input_blocks_1_0_in_layers_2",
        TEXT: LAYERS[TEXT],
    }[layer],
}


@pytest.mark.parametrize("script", SPELLINGS)
def test_kohya_names_match_their_layers(bench: Bench, script: str) -> None:
    state = {key: tensor for layer in LAYERS for key, tensor in factors(layer, SPELLINGS[script](layer)).items()}
    assert bench.merger.merge([bench.use(state)]) == ()
    bench.assert_changed_by({layer: 2 * product(state, SPELLINGS[script](layer)) for layer in LAYERS})


def test_peft_names_match_their_layers(bench: Bench) -> None:
    kohya = factors(LINEAR, "unet." + LINEAR, alpha=None) | factors(TEXT, "text_encoder.text_model." + TEXT, alpha=None)
    state = {key.replace("lora_up", "lora_B").replace("lora_down", "lora_A"): value for key, value in kohya.items()}
    assert bench.merger.merge([bench.use(state)]) == ()
    bench.assert_changed_by(
        {LINEAR: product(kohya, "unet." + LINEAR), TEXT: product(kohya, "text_encoder.text_model." + TEXT)}
    )


def test_every_linear_and_convolution_can_change(bench: Bench) -> None:
    """Names of kohya's scripts are module paths with underscores."""
    names: dict[str, str] = {}
    for prefix, network in (("lora_unet", bench.unet), ("lora_te_text_model", bench.text)):
        for name, module in network.named_modules():
            if type(module).__name__ in ("Linear", "Conv2d", "LoRACompatibleLinear", "LoRACompatibleConv"):
                names[name] = f"{prefix}_{name.replace('.', '_')}"
    state = {key: tensor for layer, name in names.items() for key, tensor in factors(layer, name).items()}
    assert len(names) > 80
    assert bench.merger.merge([bench.use(state)]) == ()
    bench.assert_changed_by({layer: 2 * product(state, name) for layer, name in names.items()})


def test_unknown_layers_are_listed_and_others_merged(bench: Bench) -> None:
    state = factors(LINEAR, LAYERS[LINEAR])
    unknown = {f"lora_unet_down_blocks_9_conv.lora_{part}.weight": torch.ones(2, 2) for part in ("up", "down")}
    assert bench.merger.merge([bench.use(state | unknown)]) == ("a: unet_down_blocks_9_conv",)
    bench.assert_changed_by({LINEAR: 2 * product(state, LAYERS[LINEAR])})


def test_lora_without_matching_layer_is_refused(bench: Bench) -> None:
    good = bench.use(factors(LINEAR, LAYERS[LINEAR]))
    bench.merger.merge([good])
    unknown = factors(LINEAR, "lora_unet_double_blocks_0_img_attn_qkv")
    with pytest.raises(WeightsError, match="b changes no layer of this checkpoint"):
        bench.merger.merge([good, bench.use(unknown, name="b")])
    bench.assert_changed_by({})
    bench.merger.merge([good])
    assert not bench.weights()[f"{LINEAR}.weight"].equal(bench.before[f"{LINEAR}.weight"])


@pytest.mark.parametrize("shape", [(64, 3), (32, 4, 3)])
def test_lora_of_wrong_width_is_refused(bench: Bench, shape: tuple[int, ...]) -> None:
    state = factors(OUT, LAYERS[OUT]) | factors(TEXT, LAYERS[TEXT])
    prefix = LAYERS[LINEAR]
    state |= {f"{prefix}.lora_up.weight": torch.ones(*shape), f"{prefix}.lora_down.weight": torch.ones(shape[-1], 32)}
    with pytest.raises(WeightsError, match=r"for another size of model|do not fit each other"):
        bench.merger.merge([bench.use(state)])
    bench.assert_changed_by({})


def test_overflow_is_refused(bench: Bench) -> None:
    state = factors(LINEAR, LAYERS[LINEAR]) | factors(TEXT, LAYERS[TEXT])
    state[f"{LAYERS[TEXT]}.lora_up.weight"].fill_(3e38)
    with pytest.raises(WeightsError, match="overflows with a"):
        bench.merger.merge([bench.use(state, 1, 10)])
    bench.assert_changed_by({})


KEY = LAYERS[LINEAR]
WRONG: dict[str, tuple[Tensors, str]] = {
    "LoHa": ({f"{KEY}.hada_w1_a": torch.ones(2, 2)}, "hada_w1_a is not a part of a LoRA"),
    "DoRA": (factors(LINEAR, KEY) | {f"{KEY}.dora_scale": torch.ones(1)}, "dora_scale is not a part"),
    "VAE": ({"decoder.conv_in.weight": torch.ones(1)}, "seems to be a VAE"),
    "half": ({f"{KEY}.lora_up.weight": torch.ones(2, 2)}, "lacks one of its factors"),
    "ranks": (
        {f"{KEY}.lora_up.weight": torch.ones(32, 3), f"{KEY}.lora_down.weight": torch.ones(4, 32)},
        "do not fit each other",
    ),
    "nothing": (
        {f"{KEY}.lora_up.weight": torch.ones(32, 0), f"{KEY}.lora_down.weight": torch.ones(0, 32)},
        "do not fit each other",
    ),
    "alphas": (factors(LINEAR, KEY) | {f"{KEY}.alpha": torch.ones(2)}, "do not fit each other"),
    "numbers": (
        {f"{KEY}.lora_up.weight": torch.tensor(1.0), f"{KEY}.lora_down.weight": torch.tensor(1.0)},
        "do not fit each other",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_unmergeable_file_error_says_why(tmp_path: Path, what: str) -> None:
    state, message = WRONG[what]
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    with pytest.raises(WeightsError, match=re.escape(message)):
        load_lora(path)


def test_truncated_or_missing_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(factors(LINEAR, KEY), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="damaged or cut off"):
        load_lora(path)
    with pytest.raises(WeightsError, match="There is no LoRA file"):
        load_lora(tmp_path / "b.safetensors")
