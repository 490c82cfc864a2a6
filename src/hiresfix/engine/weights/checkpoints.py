"""Load diffusion networks from Stable Diffusion 1.x single files, VAEs, ControlNets, and diffusers' folders.

Guarantees: a network is built with the shapes of its tensors, and every tensor that belongs to it is used exactly once;
anything else is a `WeightsError` that says what the file seems to be. No file can run code, and nothing is fetched.
Weights are never in memory twice: the network is created without memory and takes over the file's tensors. Networks are
returned on the requested device and in the requested dtype, in evaluation mode, without gradients, convolutions
channels last. Knows no prompts, no LoRA and no names of the store.
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
from hiresfix.engine.weights.ldm_keys import NetworkConfig
from hiresfix.engine.weights.superres_files import StateDict
from hiresfix.errors import WeightsError
from hiresfix.models import weight_files
from hiresfix.models.weight_files import TensorShapes, WeightKind

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel

NetworkT = TypeVar("NetworkT", bound=nn.Module)

# Tensors that training scripts save beside the networks: an averaged copy, a loss, tables that follow from the
# schedule, and the parts of CLIP for images.
_UNUSED = re.compile(
    r"model_ema\.|loss\.|(sqrt_|log_one_minus_|posterior_)|(alphas_cumprod(_prev)?|betas|logvar|lvlb_weights)$"
    r"|(v_pred|ztsnr)$|(cond_stage_model\.)?(transformer\.)?(text_model\.embeddings\.position_ids"
    r"|embeddings\.position_ids|logit_scale|text_projection(\.weight)?)$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The networks of one checkpoint.

    Attributes:
        name: of the file without suffix, or of the folder.
        sha256: of the file, or of a folder's files and their names; does not cover a separate VAE.
        prediction: what the UNet predicts: epsilon, v_prediction, ...
        unet: the denoiser.
        text_encoder: CLIP's text model.
        vae: of the checkpoint, or a separate one.
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
        """Factor from the VAE's latents to the UNet's."""
        return float(self.vae.config["scaling_factor"])


def load_checkpoint(
    path: Path,
    *,
    vae: Path | None = None,
    device: torch.device,
    dtype: torch.dtype,
    vae_dtype: torch.dtype | None = None,
) -> Checkpoint:
    """Load a single file, or a folder as diffusers writes it.

    Args:
        path: the file or folder.
        vae: a file or folder to use instead of the checkpoint's own VAE.
        device: for all networks.
        dtype: for all networks.
        vae_dtype: for a VAE that overflows in half precision; None is `dtype`.

    Raises:
        WeightsError: a file is missing, damaged, or of another architecture.
    """
    source = _open(path, "a Stable Diffusion 1.x checkpoint", {WeightKind.CHECKPOINT})
    unet = _load(_UNET, source, device, dtype)
    text_encoder = _load(_TEXT, source, device, dtype)
    source.refuse_unknown()
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
    """Load a VAE file (names of LDM or diffusers), a folder, or the VAE in a checkpoint. Raises WeightsError."""
    return _load(_VAE, _open(path, "a VAE", {WeightKind.VAE, WeightKind.CHECKPOINT}), device, dtype)


def load_controlnet(path: Path, *, device: torch.device, dtype: torch.dtype) -> ControlNetModel:
    """Load a ControlNet file (names of LDM or diffusers) or folder. Raises WeightsError."""
    return _load(_CONTROLNET, _open(path, "a ControlNet", {WeightKind.CONTROLNET}), device, dtype)


def load_parts(
    folder: Path, *, device: torch.device, dtype: torch.dtype
) -> tuple[UNet2DConditionModel, ControlNetModel, CLIPTextModel]:
    """Load UNet, ControlNet and text encoder from a diffusers folder that holds all three. Raises WeightsError."""
    source = _DiffusersFolder(folder)
    return (
        _load(_UNET, source, device, dtype),
        _load(_CONTROLNET, source, device, dtype),
        _load(_TEXT, source, device, dtype),
    )


# Sources of tensors: each returns the tensors of a network under diffusers' names, and its configuration.


class _TensorSource(Protocol):
    def read(self, spec: _NetworkSpec[Any]) -> tuple[StateDict, NetworkConfig]: ...
    def refuse_unknown(self) -> None: ...
    def prediction(self) -> str: ...


def _open(path: Path, expected: str, kinds: set[WeightKind]) -> _TensorSource:
    if path.is_dir():
        return _DiffusersFolder(path)
    if not path.is_file():
        raise WeightsError(f"There is no weight file {path}. `hiresfix models list` shows the installed ones.")
    state = superres_files.read_state(path)
    kind, words = weight_files.describe(_shapes(state))
    if kind not in kinds:
        raise WeightsError(f"{path.name} seems to be {words}, not {expected}. Choose another file.")
    return _SingleFile(path.name, state)


class _SingleFile:
    """A single file: several networks under LDM's prefixes, or one network without a prefix."""

    def __init__(self, name: str, state: StateDict) -> None:
        self._name = name
        self._state = state

    def read(self, spec: _NetworkSpec[Any]) -> tuple[StateDict, NetworkConfig]:
        prefixed = any(key.startswith(spec.prefix) for key in self._state)
        alone = not prefixed and not any(key.startswith(_PREFIXES) for key in self._state)
        prefix = "" if alone else spec.prefix
        tensors = {
            key.removeprefix(prefix): tensor
            for key, tensor in self._state.items()
            if key.startswith(prefix) and not _UNUSED.match(key)
        }
        if not tensors:
            raise WeightsError(f"{self._name} holds no {spec.what}. {spec.instead}")
        names = spec.names(tensors)
        if duplicates := [name for name, count in Counter(names.values()).items() if count > 1]:
            raise WeightsError(f"{self._name} holds {_examples(duplicates)} twice. Use a file of one model.")
        state = {names[key]: tensor for key, tensor in tensors.items()}
        with _as_weights_error(
            f"{self._name} does not fit a {spec.what} of Stable Diffusion 1.x. Choose another file."
        ):
            return state, spec.config(_shapes(state))

    def refuse_unknown(self) -> None:
        unknown = [key for key in self._state if not key.startswith(_PREFIXES) and not _UNUSED.match(key)]
        if unknown:
            raise WeightsError(
                f"{self._name} holds tensors of no known network: {_examples(unknown)}. Choose another file."
            )

    def prediction(self) -> str:
        return "v_prediction" if "v_pred" in self._state else "epsilon"


class _DiffusersFolder:
    """A folder as diffusers writes it: with a folder for each network, or of one network."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, spec: _NetworkSpec[Any]) -> tuple[StateDict, NetworkConfig]:
        subfolder = self._path / spec.folder
        folder = subfolder if subfolder.is_dir() else self._path
        config = read_json(folder / "config.json")
        class_name = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
        if class_name != spec.kind:
            raise WeightsError(f"{folder} holds a {class_name}, not a {spec.kind}. Choose another folder.")
        files = sorted(folder.glob("*.safetensors"), key=lambda file: (len(file.name), file.name))
        if not files:
            raise WeightsError(f"{folder} holds no .safetensors file. Save the model in that format.")
        state = superres_files.read_state(files[0])
        names = spec.names(state)
        return {names[key]: tensor for key, tensor in state.items() if not _UNUSED.match(key)}, config

    def refuse_unknown(self) -> None:
        """Do nothing: other files in the folder belong to other networks."""

    def prediction(self) -> str:
        scheduler = self._path / "scheduler" / "scheduler_config.json"
        return str(read_json(scheduler).get("prediction_type", "epsilon")) if scheduler.is_file() else "epsilon"


def read_json(path: Path) -> NetworkConfig:
    """Return the JSON object in a file of a model's folder. Raises WeightsError."""
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WeightsError(f"There is no {path}. Use a folder as diffusers saves it, or a single file.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged. Copy the whole folder here again.") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} is not a configuration. Copy the whole folder here again.")
    return config


# Tensors -> networks.


def _load(spec: _NetworkSpec[NetworkT], source: _TensorSource, device: torch.device, dtype: torch.dtype) -> NetworkT:
    state, config = source.read(spec)
    with (
        _as_weights_error(f"No {spec.what} can be built from this configuration. Choose another file."),
        torch.device("meta"),
    ):
        network = spec.make(config)
    expected = _shapes(network.state_dict())
    _check_shapes(spec.what, expected, _shapes(state))
    placed = {name: _place(state[name], shape, device, dtype) for name, shape in expected.items()}
    if not bool(torch.stack([tensor.isfinite().all() for tensor in placed.values()]).all()):
        raise WeightsError(f"The {spec.what} holds values that are not finite in {dtype}. Download the file again.")
    network.load_state_dict(placed, assign=True)
    _set_position_ids(network, device)
    return network.eval().requires_grad_(requires_grad=False)


def _place(tensor: Tensor, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    tensor = tensor.reshape(shape).to(device, dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _check_shapes(what: str, expected: TensorShapes, actual: TensorShapes) -> None:
    """Compare shapes, ignoring trailing ones: a 1x1 convolution and a linear layer hold the same values."""
    differences = {
        "missing": expected.keys() - actual.keys(),
        "unknown": actual.keys() - expected.keys(),
        "of another shape": {
            name
            for name in expected.keys() & actual.keys()
            if _without_trailing_ones(expected[name]) != _without_trailing_ones(actual[name])
        },
    }
    problems = "; ".join(
        f"{len(names)} {problem} ({_examples(names)})" for problem, names in differences.items() if names
    )
    if problems:
        raise WeightsError(
            f"The tensors do not make a {what} of Stable Diffusion 1.x: {problems}. "
            "Choose a file of that architecture, or download it again."
        )


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _set_position_ids(network: nn.Module, device: torch.device) -> None:
    """Fill CLIP's buffer of position numbers, the only one that no file holds."""
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
            f"{checkpoint.name}: the UNet takes {unet['cross_attention_dim']} numbers for each token and the text "
            f"encoder returns {text.hidden_size}. Choose a Stable Diffusion 1.x checkpoint."
        )


class _as_weights_error:  # noqa: N801  # reads as a statement: with _as_weights_error("...")
    """Raise errors from inside, caused by unchecked sizes, as a WeightsError with this message."""

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


def _shapes(state: Mapping[str, Tensor]) -> TensorShapes:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _examples(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return ", ".join([first, *others[:2]]) + (", ..." if len(others) > 2 else "")


# Networks: their classes are imported when they are built, because that takes seconds.


def _make_unet(config: NetworkConfig) -> UNet2DConditionModel:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    network: UNet2DConditionModel = UNet2DConditionModel.from_config(config)
    return network


def _make_controlnet(config: NetworkConfig) -> ControlNetModel:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    network: ControlNetModel = ControlNetModel.from_config(config)
    return network


def _make_vae(config: NetworkConfig) -> AutoencoderKL:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    network: AutoencoderKL = AutoencoderKL.from_config(config)
    return network


def _make_text(config: NetworkConfig) -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig.from_dict(config))


@dataclass(frozen=True, slots=True, kw_only=True)
class _NetworkSpec(Generic[NetworkT]):
    """One network of a checkpoint. `names` translates tensor names, `config` is derived from their shapes."""

    what: str
    kind: str
    prefix: str
    folder: str
    names: Callable[[Iterable[str]], dict[str, str]]
    config: Callable[[TensorShapes], NetworkConfig]
    make: Callable[[NetworkConfig], NetworkT]
    instead: str = "Choose a whole checkpoint."


_UNET: _NetworkSpec[UNet2DConditionModel] = _NetworkSpec(
    what="UNet",
    kind="UNet2DConditionModel",
    prefix=ldm_keys.UNET_PREFIX,
    folder="unet",
    names=ldm_keys.read_unet,
    config=ldm_keys.unet_config,
    make=_make_unet,
)
_TEXT: _NetworkSpec[CLIPTextModel] = _NetworkSpec(
    what="text encoder",
    kind="CLIPTextModel",
    prefix=ldm_keys.TEXT_PREFIX,
    folder="text_encoder",
    names=ldm_keys.read_text,
    config=ldm_keys.text_config,
    make=_make_text,
)
_VAE: _NetworkSpec[AutoencoderKL] = _NetworkSpec(
    what="VAE",
    kind="AutoencoderKL",
    prefix=ldm_keys.VAE_PREFIX,
    folder="vae",
    names=ldm_keys.read_vae,
    config=ldm_keys.vae_config,
    make=_make_vae,
    instead="Name one beside it, such as vae-ft-mse.",
)
_CONTROLNET: _NetworkSpec[ControlNetModel] = _NetworkSpec(
    what="ControlNet",
    kind="ControlNetModel",
    prefix=ldm_keys.CONTROLNET_PREFIX,
    folder="controlnet",
    names=ldm_keys.read_controlnet,
    config=ldm_keys.controlnet_config,
    make=_make_controlnet,
)
_PREFIXES = (ldm_keys.UNET_PREFIX, ldm_keys.TEXT_PREFIX, ldm_keys.VAE_PREFIX, ldm_keys.CONTROLNET_PREFIX)
