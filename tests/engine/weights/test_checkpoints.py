"""Checkpoints are written as single files and folders, loaded again, and compared value by value.

The single files are written by walking through the networks and numbering their blocks, like LDM did. The result is
checked against diffusers' own converter too.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from hiresfix.engine.weights import checkpoints, ldm_keys
from hiresfix.errors import WeightsError

Tensors = dict[str, Tensor]
CPU = torch.device("cpu")
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
TIME = {"linear_1": "0", "linear_2": "2"}


# Small networks of the real classes. Tests must not change them.


@cache
def unet() -> Any:
    torch.manual_seed(1)
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


@cache
def controlnet() -> Any:
    torch.manual_seed(2)
    network = ControlNetModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        conditioning_embedding_out_channels=(8, 16, 24),
    ).eval()
    for parameter in network.parameters():  # its outgoing convolutions are zero at first
        nn.init.normal_(parameter, std=0.1)
    return network


@cache
def vae(*, latents: int = 4, blocks: int = 3) -> Any:
    torch.manual_seed(3)
    return AutoencoderKL(
        latent_channels=latents,
        block_out_channels=(32, 32, 64)[-blocks:],
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
    ).eval()


@cache
def text_encoder(width: int = 64) -> Any:
    torch.manual_seed(4)
    config = CLIPTextConfig(
        vocab_size=50,
        hidden_size=width,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        max_position_embeddings=11,
        bos_token_id=48,
        eos_token_id=49,
        pad_token_id=49,
    )
    network: Any = CLIPTextModel(config)
    return network.eval()


# Names of LDM.


def put(state: Tensors, module: nn.Module, stem: str, parts: Mapping[str, str] | None = None) -> None:
    for name, tensor in module.state_dict().items():
        part, dot, parameter = name.rpartition(".")
        key = f"{stem}.{(parts or {}).get(part, part)}{dot}{parameter}"
        assert key not in state
        state[key] = tensor.contiguous()


def put_way_down(state: Tensors, network: Any) -> None:
    put(state, network.conv_in, "input_blocks.0.0")
    put(state, network.time_embedding, "time_embed", TIME)
    number = 1
    for block in network.down_blocks:
        for place, resnet in enumerate(block.resnets):
            put(state, resnet, f"input_blocks.{number}.0", RESNET)
            if hasattr(block, "attentions"):
                put(state, block.attentions[place], f"input_blocks.{number}.1")
            number += 1
        for halving in block.downsamplers or ():
            put(state, halving.conv, f"input_blocks.{number}.0.op")
            number += 1
    put(state, network.mid_block.resnets[0], "middle_block.0", RESNET)
    put(state, network.mid_block.attentions[0], "middle_block.1")
    put(state, network.mid_block.resnets[1], "middle_block.2", RESNET)


def ldm_unet(network: Any) -> Tensors:
    state: Tensors = {}
    put_way_down(state, network)
    number = 0
    for block in network.up_blocks:
        for place, resnet in enumerate(block.resnets):
            parts: list[tuple[nn.Module, str, dict[str, str]]] = [(resnet, "", RESNET)]
            if hasattr(block, "attentions"):
                parts.append((block.attentions[place], "", {}))
            if block.upsamplers and place == len(block.resnets) - 1:
                parts.append((block.upsamplers[0].conv, ".conv", {}))
            for index, (module, suffix, names) in enumerate(parts):
                put(state, module, f"output_blocks.{number}.{index}{suffix}", names)
            number += 1
    put(state, network.conv_norm_out, "out.0")
    put(state, network.conv_out, "out.2")
    return state


def ldm_controlnet(network: Any) -> Tensors:
    state: Tensors = {}
    put_way_down(state, network)
    for index, convolution in enumerate(network.controlnet_down_blocks):
        put(state, convolution, f"zero_convs.{index}.0")
    put(state, network.controlnet_mid_block, "middle_block_out.0")
    hint = network.controlnet_cond_embedding
    for index, convolution in enumerate([hint.conv_in, *hint.blocks, hint.conv_out]):
        put(state, convolution, f"input_hint_block.{2 * index}")
    return state


def ldm_vae(network: Any) -> Tensors:
    state: Tensors = {}
    parts = {"conv_shortcut": "nin_shortcut"}
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for name, side, blocks in (
        ("encoder", network.encoder, list(enumerate(network.encoder.down_blocks))),
        ("decoder", network.decoder, list(enumerate(reversed(network.decoder.up_blocks)))),
    ):
        put(state, side.conv_in, f"{name}.conv_in")
        put(state, side.conv_norm_out, f"{name}.norm_out")
        put(state, side.conv_out, f"{name}.conv_out")
        put(state, side.mid_block.resnets[0], f"{name}.mid.block_1", parts)
        put(state, side.mid_block.attentions[0], f"{name}.mid.attn_1", attention)
        put(state, side.mid_block.resnets[1], f"{name}.mid.block_2", parts)
        for level, block in blocks:
            way = f"{name}.{'down' if name == 'encoder' else 'up'}.{level}"
            for place, resnet in enumerate(block.resnets):
                put(state, resnet, f"{way}.block.{place}", parts)
            for kind in ("down", "up"):
                for resizing in getattr(block, f"{kind}samplers", None) or ():
                    put(state, resizing.conv, f"{way}.{kind}sample.conv")
    put(state, network.quant_conv, "quant_conv")
    put(state, network.post_quant_conv, "post_quant_conv")
    for key in [key for key in state if "attn_1" in key and key.endswith("weight") and "norm" not in key]:
        state[key] = state[key][:, :, None, None].contiguous()  # LDM has convolutions here
    return state


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> Tensors:
    return {prefix + key: tensor for key, tensor in state.items()}


def single_file(**changes: Tensors) -> Tensors:
    """Return a whole checkpoint as published: three networks, tables of the schedule and CLIP's positions."""
    parts = {
        "unet": prefixed("model.diffusion_model.", ldm_unet(unet())),
        "text": prefixed("cond_stage_model.transformer.text_model.", text_encoder().state_dict()),
        "vae": prefixed("first_stage_model.", ldm_vae(vae())),
        "rest": {
            "alphas_cumprod": torch.ones(5),
            "sqrt_one_minus_alphas_cumprod": torch.ones(5),
            "model_ema.decay": torch.ones(()),
            "model_ema.diffusion_modelout2weight": torch.ones(3),
            "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(11)[None],
        },
    } | changes
    return {key: tensor for part in parts.values() for key, tensor in part.items()}


def load(path: Path, **options: Any) -> Any:
    return checkpoints.load_checkpoint(path, **{"dtype": torch.float32, **options}, device=CPU)


def write(folder: Path, state: Tensors, name: str = "model.safetensors") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "global_step": 7}, path)
    return path


def assert_same(read: Any, written: Any) -> None:
    torch.testing.assert_close(dict(read.state_dict()), dict(written.state_dict()), rtol=0, atol=0)
    assert not read.training
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in read.parameters())
    assert not any(buffer.is_meta for buffer in read.buffers())


# Loading.


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
@torch.inference_mode()
def test_single_file_networks_compute_the_same(tmp_path: Path, name: str) -> None:
    read = load(write(tmp_path, single_file(), name))
    assert (read.name, read.prediction) == ("model", "epsilon")
    assert (read.latent_channels, read.latent_factor, read.latent_scaling) == (4, 4, 0.18215)
    x, tokens, image = torch.randn(2, 4, 8, 8), torch.randint(50, (2, 11)), torch.randn(1, 3, 16, 16)
    context = text_encoder()(tokens).last_hidden_state
    torch.testing.assert_close(read.text_encoder(tokens).last_hidden_state, context, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        read.unet(x, 3.7, context, return_dict=False), unet()(x, 3.7, context, return_dict=False), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(read.vae(image, return_dict=False), vae()(image, return_dict=False), rtol=0, atol=1e-5)
    for made, written in ((read.unet, unet()), (read.text_encoder, text_encoder()), (read.vae, vae())):
        assert_same(made, written)


@pytest.mark.parametrize("prefix", ["control_model.", ""])
@torch.inference_mode()
def test_ldm_controlnet_computes_the_same(tmp_path: Path, prefix: str) -> None:
    path = write(tmp_path, prefixed(prefix, ldm_controlnet(controlnet())), "control.pth")
    read = checkpoints.load_controlnet(path, device=CPU, dtype=torch.float32)
    assert_same(read, controlnet())
    inputs = (torch.randn(1, 4, 8, 8), 1.5, torch.randn(1, 5, 64), torch.rand(1, 3, 32, 32))
    down, middle = read(*inputs, return_dict=False)
    wanted_down, wanted_middle = controlnet()(*inputs, return_dict=False)
    torch.testing.assert_close([*down, middle], [*wanted_down, wanted_middle], rtol=0, atol=1e-5)


def test_diffusers_controlnet_loads_from_file_and_folder(tmp_path: Path) -> None:
    controlnet().save_pretrained(tmp_path / "controlnet")
    for path in (tmp_path / "controlnet" / "diffusion_pytorch_model.safetensors", tmp_path / "controlnet", tmp_path):
        assert_same(checkpoints.load_controlnet(path, device=CPU, dtype=torch.float32), controlnet())


def test_vae_loads_under_all_known_names(tmp_path: Path) -> None:
    state = {key: tensor.contiguous() for key, tensor in vae().state_dict().items()}
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    older = {}
    for key, tensor in state.items():
        found = next((new for new in old if f".{new}." in key), None)
        older[key.replace(found, old[found]) if found else key] = tensor
    layouts = {"ldm": ldm_vae(vae()) | {"loss.logvar": torch.ones(1)}, "new": state, "old": older}
    assert len({frozenset(layout) for layout in layouts.values()}) == 3
    for name, layout in layouts.items():
        path = write(tmp_path, layout, f"{name}.safetensors")
        assert_same(checkpoints.load_vae(path, device=CPU, dtype=torch.float32), vae())


def test_separate_vae_replaces_the_checkpoints(tmp_path: Path) -> None:
    other = {key: tensor + 1 for key, tensor in ldm_vae(vae()).items()}
    path = write(tmp_path, single_file(vae={}))
    with pytest.raises(WeightsError, match="holds no VAE"):
        load(path)
    read = load(path, vae=write(tmp_path, other, "vae.safetensors"))
    torch.testing.assert_close(read.vae.decoder.conv_in.bias, vae().decoder.conv_in.bias + 1, rtol=0, atol=0)


@pytest.mark.parametrize("latents", [4, 48])
def test_diffusers_folder_keeps_its_configuration(tmp_path: Path, latents: int) -> None:
    """16 channels a group and 4 heads cannot come from shapes: they come from config.json."""
    torch.manual_seed(1)
    network = UNet2DConditionModel(
        in_channels=latents,
        out_channels=latents,
        block_out_channels=(16, 48),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    autoencoder = vae(latents=latents, blocks=2)
    network.save_pretrained(tmp_path / "unet")
    autoencoder.save_pretrained(tmp_path / "vae")
    text_encoder().save_pretrained(tmp_path / "text_encoder")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": "v_prediction"}))
    read = load(tmp_path)
    for made, written in ((read.unet, network), (read.text_encoder, text_encoder()), (read.vae, autoencoder)):
        assert_same(made, written)
    assert (read.latent_channels, read.latent_factor, read.prediction) == (latents, 2, "v_prediction")
    with torch.inference_mode():
        x, context = torch.randn(1, latents, 8, 8), torch.randn(1, 7, 64)
        torch.testing.assert_close(
            read.unet(x, 9, context, return_dict=False), network(x, 9, context, return_dict=False), rtol=0, atol=1e-5
        )


def test_networks_have_requested_dtype_and_channels_last(tmp_path: Path) -> None:
    read = load(write(tmp_path, single_file()), dtype=torch.float16, vae_dtype=torch.float32)
    assert {parameter.dtype for parameter in read.unet.parameters()} == {torch.float16}
    assert {parameter.dtype for parameter in read.vae.parameters()} == {torch.float32}
    weight = read.unet.down_blocks[0].resnets[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_changing_weights_leaves_the_file_unchanged(tmp_path: Path) -> None:
    path = write(tmp_path, single_file())
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    read = load(path)
    assert read.sha256 == before
    with torch.no_grad():
        for parameter in (*read.unet.parameters(), *read.text_encoder.parameters(), *read.vae.parameters()):
            parameter.add_(1)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_folder_hash_covers_every_file(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    first = tmp_path / "unet" / "config.json"
    first.write_text("{}")
    hashes = [checkpoints._fingerprint(tmp_path), checkpoints._fingerprint(tmp_path)]
    first.write_text("[]")
    hashes.append(checkpoints._fingerprint(tmp_path))
    first.rename(tmp_path / "config.json")
    hashes.append(checkpoints._fingerprint(tmp_path))
    assert [hashes.index(value) for value in hashes] == [0, 0, 2, 3]


# The published sizes, without their memory.

LEVELS = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}


def full_vae() -> Any:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


FULL: list[tuple[int, Callable[[], nn.Module], Callable[[Any], Tensors], Any, Any, type[Any], Any]] = [
    (859_520_964, lambda: UNet2DConditionModel(**LEVELS), ldm_unet, ldm_keys.read_unet, ldm_keys.unet_config,
     UNet2DConditionModel, single_file_utils.convert_ldm_unet_checkpoint),
    (361_279_120, lambda: ControlNetModel(**LEVELS), ldm_controlnet, ldm_keys.read_controlnet,
     ldm_keys.controlnet_config, ControlNetModel, single_file_utils.convert_controlnet_checkpoint),
    (83_653_863, full_vae, ldm_vae, ldm_keys.read_vae, ldm_keys.vae_config,
     AutoencoderKL, single_file_utils.convert_ldm_vae_checkpoint),
]  # fmt: skip


@pytest.mark.parametrize(("count", "make", "export", "names", "config", "network", "convert"), FULL)
def test_published_networks_have_known_names_and_sizes(
    count: int,
    make: Callable[[], nn.Module],
    export: Callable[[Any], Tensors],
    names: Callable[[Tensors], dict[str, str]],
    config: Callable[[Any], dict[str, Any]],
    network: Any,
    convert: Any,
) -> None:
    with torch.device("meta"):
        original = make()
    written = export(original)
    translated = {new: written[old] for old, new in names(written).items()}
    assert len(translated) == len(written)
    read_config = config({name: tuple(tensor.shape) for name, tensor in translated.items()})
    with torch.device("meta"):
        built = network.from_config(read_config)
    assert sum(parameter.numel() for parameter in built.parameters()) == count
    shapes = {name: tensor.shape for name, tensor in original.state_dict().items()}
    assert {name: tensor.shape for name, tensor in built.state_dict().items()} == shapes
    prefix = {UNet2DConditionModel: "model.diffusion_model.", ControlNetModel: "control_model."}.get(network, "")
    theirs = convert(prefixed(prefix, written), dict(built.config))
    assert {name: tensor.shape for name, tensor in theirs.items()} == shapes
    for name, tensor in theirs.items():
        assert name in translated
        if "mid_block.attentions" not in name or network is not AutoencoderKL:  # a new view there
            assert tensor is translated[name]


# Wrong and broken files.

LORA = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(2, 2)}
FOREIGN: dict[str, tuple[Tensors, str]] = {
    "SDXL": ({"conditioner.embedders.0.transformer.x": torch.ones(1)}, "SDXL"),
    "SD 2.x": ({"cond_stage_model.model.token_embedding.weight": torch.ones(1)}, r"Stable Diffusion 2\.x"),
    "SD 3": ({"model.diffusion_model.joint_blocks.0.x": torch.ones(1)}, "Stable Diffusion 3"),
    "Flux": ({"double_blocks.0.img_attn.qkv.weight": torch.ones(1)}, "Flux"),
    "LoRA": (LORA, "a LoRA"),
    "SDXL LoRA": ({"lora_te2_text_model.lora_down.weight": torch.ones(1)}, "SDXL LoRA"),
    "VAE": ({"decoder.conv_in.weight": torch.ones(1)}, "a VAE"),
    "ControlNet": ({"control_model.time_embed.0.weight": torch.ones(1)}, "a ControlNet"),
    "ESRGAN": ({"conv_first.weight": torch.ones(1)}, "a super-resolution network"),
    "embedding": ({"emb_params": torch.ones(1, 64)}, "textual inversion"),
    "inpainting": ({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(32, 9, 3, 3)}, "inpainting"),
    "UNet": ({"down_blocks.0.resnets.0.conv1.weight": torch.ones(1)}, "a UNet without"),
    "anything": ({"a": torch.ones(1)}, "a file of an unknown kind"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_error_names_the_kind_of_file(tmp_path: Path, what: str) -> None:
    state, words = FOREIGN[what]
    with pytest.raises(WeightsError, match=f"model.safetensors seems to be {words}|seems to be .*{words}"):
        load(write(tmp_path, state))


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"seems to be a Stable Diffusion 1\.x checkpoint, not a ControlNet"):
        checkpoints.load_controlnet(write(tmp_path, single_file()), device=CPU, dtype=torch.float32)
    with pytest.raises(WeightsError, match="seems to be a LoRA, not a VAE"):
        checkpoints.load_vae(write(tmp_path, LORA, "lora.safetensors"), device=CPU, dtype=torch.float32)


def changed(change: str) -> Tensors:
    state = single_file()
    key = "model.diffusion_model.middle_block.1.proj_in.weight"
    if change == "missing":
        del state[key]
    elif change == "unknown":
        state["model.diffusion_model.middle_block.7.adapter.weight"] = torch.ones(1)
    elif change == "shape":
        state[key] = torch.ones(64, 32, 1, 1)
    elif change == "elsewhere":
        state["motion_modules.0.weight"] = torch.ones(1)
    elif change == "twice":
        state["model.diffusion_model.output_blocks.1.2.conv.weight"] = torch.ones(64, 64, 3, 3)
    elif change == "infinite":
        state[key] = torch.full_like(state[key], 1e6)
    elif change == "no text":
        state = {key: tensor for key, tensor in state.items() if not key.startswith("cond_stage")}
    elif change == "depth":
        state = {key: tensor for key, tensor in state.items() if "input_blocks.1" not in key}
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"1 missing \(mid_block.attentions.0.proj_in.weight\)"),
        ("unknown", r"1 unknown \(middle_block.7.adapter.weight\)"),
        ("shape", r"1 of another shape \(mid_block.attentions.0.proj_in.weight\)"),
        ("elsewhere", r"holds tensors of no known network: motion_modules.0.weight"),
        ("twice", r"holds up_blocks.0.upsamplers.0.conv.weight twice"),
        ("infinite", "values that are not finite in torch.float16"),
        ("no text", "holds no text encoder"),
        ("depth", "No UNet can be built"),
    ],
)
def test_unfit_checkpoint_error_says_where(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        load(write(tmp_path, changed(change)), dtype=torch.float16)


def test_mismatched_networks_are_refused(tmp_path: Path) -> None:
    wide = prefixed("cond_stage_model.transformer.text_model.", text_encoder(128).state_dict())
    with pytest.raises(WeightsError, match="takes 64 numbers for each token and the text encoder returns 128"):
        load(write(tmp_path, single_file(text=wide)))
    other = prefixed("first_stage_model.", ldm_vae(vae(latents=16)))
    with pytest.raises(WeightsError, match="takes 4 channels and the VAE makes 16"):
        load(write(tmp_path, single_file(vae=other)))


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_truncated_file_is_reported(tmp_path: Path, name: str, keep: int) -> None:
    path = write(tmp_path, single_file(vae={}), name)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="damaged"):
        load(path)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "owned")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_run(tmp_path: Path, zipped: bool) -> None:
    path, target = tmp_path / "model.ckpt", tmp_path / "owned"
    if zipped:
        torch.save({"state_dict": {"a": torch.ones(1), "b": Malicious(target)}}, path)
    else:
        path.write_bytes(pickle.dumps(Malicious(target), protocol=2))
    with pytest.raises(WeightsError, match="code in it, which is never run"):
        load(path)
    assert not target.exists()


def test_broken_folder_error_says_why(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"There is no .*config\.json"):
        load(tmp_path)
    (tmp_path / "unet").mkdir()
    config = tmp_path / "unet" / "config.json"
    for content, message in (
        ("{", "damaged"),
        ("[]", "is not a configuration"),
        ('{"_class_name": "FluxTransformer2DModel"}', "holds a FluxTransformer2DModel"),
        ('{"_class_name": "UNet2DConditionModel"}', r"no \.safetensors"),
    ):
        config.write_text(content)
        with pytest.raises(WeightsError, match=message):
            load(tmp_path)
    config.write_text('{"_class_name": "UNet2DConditionModel", "block_out_channels": "wide"}')
    save_file({"conv_in.weight": torch.ones(1)}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(WeightsError, match="No UNet can be built"):
        load(tmp_path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="There is no weight file"):
        load(tmp_path / "nothing.safetensors")
