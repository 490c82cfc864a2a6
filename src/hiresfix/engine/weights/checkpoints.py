"""Files -> diffusion networks: Stable Diffusion 1.x single files, VAEs, ControlNets, and diffusers' folders.

Guarantees: a network is built of the shapes its tensors have, and every tensor that belongs to it is used exactly
once; anything else is a `WeightsError` that says what the file seems to be. No file can run code, and nothing is
fetched. Weights are never held twice: the network is made without memory and takes the file's tensors over. Comes
back on the device and in the dtype asked for, in evaluation mode, without gradients, convolutions channels last.
Knows no prompts, no LoRA and no names of the store.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from hiresfix.engine.weights import ldm_keys, superres_files
from hiresfix.engine.weights.ldm_keys import Config
from hiresfix.engine.weights.superres_files import State
from hiresfix.errors import WeightsError
from hiresfix.models import weight_files
from hiresfix.models.weight_files import Kind, Shapes

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel

N = TypeVar("N", bound=nn.Module)

# What training scripts keep beside the networks: an averaged twin, a loss, tables that follow from the schedule, and
# the parts of CLIP that speak to pictures.
_IDLE = re.compile(
    r"model_ema\.|loss\.|(sqrt_|log_one_minus_|posterior_)|(alphas_cumprod(_prev)?|betas|logvar|lvlb_weights)$"
    r"|(v_pred|ztsnr)$|(cond_stage_model\.)?(transformer\.)?(text_model\.embeddings\.position_ids"
    r"|embeddings\.position_ids|logit_scale|text_projection(\.weight)?)$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The networks of one checkpoint. `prediction` is what the UNet tells: epsilon, v_prediction, ...

    `sha256` is of the file, or of a folder's files and their names; a VAE from elsewhere has its own.
    """

    name: str
    sha256: str
    prediction: str
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    vae: AutoencoderKL

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config["latent_channels"])

    @property
    def latent_factor(self) -> int:
        """Pixels that one latent pixel covers on each axis; a power of two."""
        return 1 << len(self.vae.config["block_out_channels"]) - 1

    @property
    def latent_scaling(self) -> float:
        """The UNet's latents are the VAE's times this."""
        return float(self.vae.config["scaling_factor"])


def load_checkpoint(
    path: Path,
    *,
    vae: Path | None = None,
    device: torch.device,
    dtype: torch.dtype,
    vae_dtype: torch.dtype | None = None,
) -> Checkpoint:
    """A single file, or a folder as diffusers writes it. `vae`: a file or folder used instead of the checkpoint's own.

    `vae_dtype` is for a VAE that overflows in half precision; None is `dtype`. Raises WeightsError.
    """
    source = _open(path, "a Stable Diffusion 1.x checkpoint", {Kind.CHECKPOINT})
    unet = _load(_UNET, source, device, dtype)
    text_encoder = _load(_TEXT, source, device, dtype)
    source.refuse_the_rest()
    checkpoint = Checkpoint(
        name=path.name if path.is_dir() else path.stem,
        sha256=_fingerprint(path),
        prediction=source.prediction(),
        unet=unet,
        text_encoder=text_encoder,
        vae=load_vae(vae or path, device=device, dtype=vae_dtype or dtype),
    )
    _check_together(checkpoint)
    return checkpoint


def load_vae(path: Path, *, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    """A VAE of its own (names of LDM or diffusers, or a folder), or the one in a checkpoint. Raises WeightsError."""
    return _load(_VAE, _open(path, "a VAE", {Kind.VAE, Kind.CHECKPOINT}), device, dtype)


def load_controlnet(path: Path, *, device: torch.device, dtype: torch.dtype) -> ControlNetModel:
    """A ControlNet's file (names of LDM or diffusers) or folder. Raises WeightsError."""
    return _load(_CONTROLNET, _open(path, "a ControlNet", {Kind.CONTROLNET}), device, dtype)


def load_parts(
    folder: Path, *, device: torch.device, dtype: torch.dtype
) -> tuple[UNet2DConditionModel, ControlNetModel, CLIPTextModel]:
    """UNet, ControlNet and text encoder of a diffusers folder that holds all three. Raises WeightsError."""
    source = _Folder(folder)
    return (
        _load(_UNET, source, device, dtype),
        _load(_CONTROLNET, source, device, dtype),
        _load(_TEXT, source, device, dtype),
    )


# Where tensors come from: each source gives a part's tensors under diffusers' names, and its configuration.


class _Source(Protocol):
    def part(self, part: _Part[Any]) -> tuple[State, Config]: ...
    def refuse_the_rest(self) -> None: ...
    def prediction(self) -> str: ...


def _open(path: Path, wanted: str, kinds: set[Kind]) -> _Source:
    if path.is_dir():
        return _Folder(path)
    if not path.is_file():
        raise WeightsError(f"There is no weight file {path}. `hiresfix models list` shows those there are.")
    state = superres_files.read_state(path)
    kind, words = weight_files.describe(_shapes(state))
    if kind not in kinds:
        raise WeightsError(f"{path.name} seems to be {words}, not {wanted}. Choose another file.")
    return _File(path.name, state)


class _File:
    """A single file: networks side by side under LDM's prefixes, or one alone without any."""

    def __init__(self, name: str, state: State) -> None:
        self._name = name
        self._state = state

    def part(self, part: _Part[Any]) -> tuple[State, Config]:
        prefixed = any(key.startswith(part.prefix) for key in self._state)
        alone = not prefixed and not any(key.startswith(_PREFIXES) for key in self._state)
        prefix = "" if alone else part.prefix
        mine = {
            key.removeprefix(prefix): tensor
            for key, tensor in self._state.items()
            if key.startswith(prefix) and not _IDLE.match(key)
        }
        if not mine:
            raise WeightsError(f"{self._name} holds no {part.what}. {part.instead}")
        names = part.names(mine)
        if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
            raise WeightsError(f"{self._name} holds {_some(twice)} twice. Use a file of one model.")
        state = {names[key]: tensor for key, tensor in mine.items()}
        with _told(f"{self._name} does not fit a {part.what} of Stable Diffusion 1.x. Choose another file."):
            return state, part.config(_shapes(state))

    def refuse_the_rest(self) -> None:
        rest = [key for key in self._state if not key.startswith(_PREFIXES) and not _IDLE.match(key)]
        if rest:
            raise WeightsError(f"{self._name} holds what belongs to no network known here: {_some(rest)}.")

    def prediction(self) -> str:
        return "v_prediction" if "v_pred" in self._state else "epsilon"


class _Folder:
    """A folder as diffusers writes it: each network in its own, or the one network itself."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def part(self, part: _Part[Any]) -> tuple[State, Config]:
        inner = self._path / part.folder
        folder = inner if inner.is_dir() else self._path
        config = read_json(folder / "config.json")
        built = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
        if built != part.kind:
            raise WeightsError(f"{folder} holds a {built}, not a {part.kind}. Choose another folder.")
        files = sorted(folder.glob("*.safetensors"), key=lambda file: (len(file.name), file.name))
        if not files:
            raise WeightsError(f"{folder} holds no .safetensors file. Save the model in that format.")
        state = superres_files.read_state(files[0])
        names = part.names(state)
        return {names[key]: tensor for key, tensor in state.items() if not _IDLE.match(key)}, config

    def refuse_the_rest(self) -> None:
        """Nothing: what else lies in the folder are files of their own."""

    def prediction(self) -> str:
        scheduler = self._path / "scheduler" / "scheduler_config.json"
        return str(read_json(scheduler).get("prediction_type", "epsilon")) if scheduler.is_file() else "epsilon"


def read_json(path: Path) -> Config:
    """An object in a file of a model's folder. Raises WeightsError."""
    try:
        read = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WeightsError(f"There is no {path}. Use a folder as diffusers saves it, or a single file.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged. Bring the whole folder here again.") from error
    if not isinstance(read, dict):
        raise WeightsError(f"{path} is no configuration. Bring the whole folder here again.")
    return read


# From tensors to networks.


def _load(part: _Part[N], source: _Source, device: torch.device, dtype: torch.dtype) -> N:
    state, config = source.part(part)
    with _told(f"No {part.what} can be built of this configuration. Choose another file."), torch.device("meta"):
        network = part.make(config)
    expected = _shapes(network.state_dict())
    _check_shapes(part.what, expected, _shapes(state))
    placed = {name: _placed(state[name], shape, device, dtype) for name, shape in expected.items()}
    if not bool(torch.stack([tensor.isfinite().all() for tensor in placed.values()]).all()):
        raise WeightsError(f"The {part.what} holds values that are no finite {dtype} numbers. Download the file again.")
    network.load_state_dict(placed, assign=True)
    _count_positions(network, device)
    return network.eval().requires_grad_(requires_grad=False)


def _placed(tensor: Tensor, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    tensor = tensor.reshape(shape).to(device, dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _check_shapes(what: str, expected: Shapes, given: Shapes) -> None:
    """Shapes may differ by trailing ones: a 1x1 convolution and a linear layer hold the same numbers."""
    found = {
        "missing": expected.keys() - given.keys(),
        "unknown": given.keys() - expected.keys(),
        "of another shape": {
            name for name in expected.keys() & given.keys() if _core(expected[name]) != _core(given[name])
        },
    }
    problems = "; ".join(f"{len(names)} {problem} ({_some(names)})" for problem, names in found.items() if names)
    if problems:
        raise WeightsError(
            f"The tensors do not make a {what} of Stable Diffusion 1.x: {problems}. "
            "Choose a file of that architecture, or download it again."
        )


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _count_positions(network: nn.Module, device: torch.device) -> None:
    """CLIP numbers its positions in a buffer that no file holds; everything else has come from the file."""
    for name, buffer in network.named_buffers():
        owner, _, leaf = name.rpartition(".")
        assert leaf == "position_ids", name
        setattr(network.get_submodule(owner), leaf, torch.arange(buffer.numel(), device=device).view(buffer.shape))


def _check_together(checkpoint: Checkpoint) -> None:
    unet, text = checkpoint.unet.config, checkpoint.text_encoder.config
    if unet["in_channels"] != checkpoint.latent_channels:
        raise WeightsError(
            f"{checkpoint.name}: the UNet takes {unet['in_channels']} channels and the VAE makes "
            f"{checkpoint.latent_channels}. Choose a VAE that belongs to it; inpainting checkpoints have none."
        )
    if unet["cross_attention_dim"] != text.hidden_size:
        raise WeightsError(
            f"{checkpoint.name}: the UNet listens to {unet['cross_attention_dim']} numbers a token and the text "
            f"encoder gives {text.hidden_size}. Choose a Stable Diffusion 1.x checkpoint."
        )


class _told:  # noqa: N801  # reads as a statement: with _told("...")
    """What goes wrong inside, with sizes that nobody has checked, is a WeightsError with this message."""

    def __init__(self, message: str) -> None:
        self._message = message

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, LookupError | ValueError | TypeError | ArithmeticError | RuntimeError | AttributeError):
            raise WeightsError(self._message) from error


def _fingerprint(path: Path) -> str:
    try:
        return weight_files.fingerprint(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}. Check the disk and its permissions.") from error


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _some(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return ", ".join([first, *others[:2]]) + (", ..." if len(others) > 2 else "")


# The parts: their classes are imported when they are built, because that takes seconds.


def _make_unet(config: Config) -> UNet2DConditionModel:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    made: UNet2DConditionModel = UNet2DConditionModel.from_config(config)
    return made


def _make_controlnet(config: Config) -> ControlNetModel:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    made: ControlNetModel = ControlNetModel.from_config(config)
    return made


def _make_vae(config: Config) -> AutoencoderKL:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    made: AutoencoderKL = AutoencoderKL.from_config(config)
    return made


def _make_text(config: Config) -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig.from_dict(config))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part(Generic[N]):
    """One network of a checkpoint. `names` translates the names of tensors, `config` reads off their shapes."""

    what: str
    kind: str
    prefix: str
    folder: str
    names: Callable[[Iterable[str]], dict[str, str]]
    config: Callable[[Shapes], Config]
    make: Callable[[Config], N]
    instead: str = "Choose a whole checkpoint."


_UNET: _Part[UNet2DConditionModel] = _Part(
    what="UNet",
    kind="UNet2DConditionModel",
    prefix=ldm_keys.UNET_PREFIX,
    folder="unet",
    names=ldm_keys.read_unet,
    config=ldm_keys.unet_config,
    make=_make_unet,
)
_TEXT: _Part[CLIPTextModel] = _Part(
    what="text encoder",
    kind="CLIPTextModel",
    prefix=ldm_keys.TEXT_PREFIX,
    folder="text_encoder",
    names=ldm_keys.read_text,
    config=ldm_keys.text_config,
    make=_make_text,
)
_VAE: _Part[AutoencoderKL] = _Part(
    what="VAE",
    kind="AutoencoderKL",
    prefix=ldm_keys.VAE_PREFIX,
    folder="vae",
    names=ldm_keys.read_vae,
    config=ldm_keys.vae_config,
    make=_make_vae,
    instead="Name one beside it, such as vae-ft-mse.",
)
_CONTROLNET: _Part[ControlNetModel] = _Part(
    what="ControlNet",
    kind="ControlNetModel",
    prefix=ldm_keys.CONTROLNET_PREFIX,
    folder="controlnet",
    names=ldm_keys.read_controlnet,
    config=ldm_keys.controlnet_config,
    make=_make_controlnet,
)
_PREFIXES = (ldm_keys.UNET_PREFIX, ldm_keys.TEXT_PREFIX, ldm_keys.VAE_PREFIX, ldm_keys.CONTROLNET_PREFIX)
