"""Textual inversion files: all supported layouts, and all kinds of wrong files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hiresfix.engine.diffusion import textual_inversion
from hiresfix.engine.diffusion.textual_inversion import Embedding
from hiresfix.errors import WeightsError

WIDTH = 12


def vectors(count: int = 3, width: int = WIDTH) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def trained_dict(tensor: Tensor) -> dict[str, object]:
    """Return the dictionary that training tools write: the vectors and details of the training."""
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": tensor},
        "name": "another-name",
        "step": 3000,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }


LAYOUTS: dict[str, Callable[[Path, Tensor], Path]] = {}


def layout(suffix: str) -> Callable[[Callable[[Path, Tensor], None]], None]:
    def register(write: Callable[[Path, Tensor], None]) -> None:
        def write_to(folder: Path, tensor: Tensor) -> Path:
            path = folder / f"My-Style v1.3{suffix}"
            write(path, tensor)
            return path

        LAYOUTS[write.__name__] = write_to

    return register


@layout(".pt")
def trained_dictionary(path: Path, tensor: Tensor) -> None:
    torch.save(trained_dict(tensor), path)


@layout(".pt")
def trained_parameter(path: Path, tensor: Tensor) -> None:
    torch.save(trained_dict(torch.nn.Parameter(tensor)), path)


@layout(".pt")
def dictionary_of_old_torch(path: Path, tensor: Tensor) -> None:
    torch.save(trained_dict(tensor), path, _use_new_zipfile_serialization=False)


@layout(".bin")
def single_tensor(path: Path, tensor: Tensor) -> None:
    torch.save({"<my-style>": tensor}, path)


@layout(".safetensors")
def safe_tensors(path: Path, tensor: Tensor) -> None:
    safetensors.torch.save_file({"emb_params": tensor}, path)


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_file_layout_loads(tmp_path: Path, write: Callable[[Path, Tensor], Path], dtype: torch.dtype) -> None:
    written = vectors().to(dtype)
    embedding = textual_inversion.load(write(tmp_path, written), width=WIDTH)
    assert embedding.name == "My-Style v1.3"
    assert embedding.vectors.dtype == torch.float32
    assert not embedding.vectors.requires_grad
    torch.testing.assert_close(embedding.vectors, written.float(), rtol=0, atol=0)


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
def test_single_vector_may_be_one_dimensional(tmp_path: Path, write: Callable[[Path, Tensor], Path]) -> None:
    embedding = textual_inversion.load(write(tmp_path, vectors(1)[0]), width=WIDTH)
    torch.testing.assert_close(embedding.vectors, vectors(1), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (vectors(2, 16), r"is \(2, 16\), but .* 1 to 75 vectors of 12"),
        (vectors(76), "1 to 75 vectors"),
        (torch.zeros(0, WIDTH), "1 to 75 vectors"),
        (torch.zeros(1, 2, WIDTH), "1 to 75 vectors"),
        (torch.tensor(1.0), "1 to 75 vectors"),
        (torch.ones(2, WIDTH, dtype=torch.int64), "does not contain a plain floating-point tensor"),
        (vectors().index_fill(0, torch.tensor(1), float("nan")), "non-finite values"),
    ],
    ids=["other width", "too many", "none", "three axes", "a number", "integers", "not finite"],
)
@pytest.mark.parametrize("write", [LAYOUTS["trained_dictionary"], LAYOUTS["safe_tensors"]], ids=["pt", "safetensors"])
def test_unusable_vectors_are_rejected_with_reason(
    tmp_path: Path, write: Callable[[Path, Tensor], Path], tensor: Tensor, message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        textual_inversion.load(write(tmp_path, tensor), width=WIDTH)


@pytest.mark.parametrize("tensor", [torch.zeros(2, WIDTH, device="meta"), torch.zeros(2, WIDTH).to_sparse()])
def test_sparse_and_meta_tensors_are_rejected(tmp_path: Path, tensor: Tensor) -> None:
    torch.save({"*": tensor}, tmp_path / "odd.pt")
    with pytest.raises(WeightsError, match="does not contain a plain floating-point tensor"):
        textual_inversion.load(tmp_path / "odd.pt", width=WIDTH)


def test_huge_tensor_is_rejected_before_copying(tmp_path: Path) -> None:
    torch.save({"*": torch.zeros(1, WIDTH).expand(10**12, WIDTH)}, tmp_path / "huge.pt")
    with pytest.raises(WeightsError, match="1 to 75 vectors"):
        textual_inversion.load(tmp_path / "huge.pt", width=WIDTH)


def test_other_kinds_of_files_are_rejected(tmp_path: Path) -> None:
    safetensors.torch.save_file({"clip_l": vectors(), "clip_g": vectors(3, 20)}, tmp_path / "sdxl.safetensors")
    with pytest.raises(WeightsError, match=r"contains 2 tensors, but an embedding has one.*not one for SDXL"):
        textual_inversion.load(tmp_path / "sdxl.safetensors", width=WIDTH)
    torch.save({"step": 3}, tmp_path / "empty.pt")
    with pytest.raises(WeightsError, match="0 tensors"):
        textual_inversion.load(tmp_path / "empty.pt", width=WIDTH)
    for number, content in enumerate((vectors(), [vectors()], {"string_to_param": vectors()})):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(WeightsError, match="does not contain a dictionary of tensors"):
            textual_inversion.load(tmp_path / f"{number}.pt", width=WIDTH)
    with pytest.raises(WeightsError, match=r"Use a \.pt, \.bin or \.safetensors file"):
        textual_inversion.load(tmp_path / "image.png", width=WIDTH)
    with pytest.raises(WeightsError, match="does not exist"):
        textual_inversion.load(tmp_path / "missing.pt", width=WIDTH)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (subprocess.check_call, ([sys.executable, "-c", "open('exploded', 'w')"],))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_pickle_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**trained_dict(vectors()), "bomb": Bomb()}, "bomb.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"contains code, which hiresfix never runs.*convert it to \.safetensors"):
        textual_inversion.load(tmp_path / "bomb.pt", width=WIDTH)
    assert not Path("exploded").exists()
    # Check that the code runs when the file is read unsafely.
    torch.load("bomb.pt", weights_only=False)
    assert Path("exploded").exists()


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
def test_truncated_file_is_rejected(tmp_path: Path, write: Callable[[Path, Tensor], Path]) -> None:
    path = write(tmp_path, vectors())
    whole = path.read_bytes()
    for length in {*range(0, len(whole), max(1, len(whole) // 25)), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="again"):
            textual_inversion.load(path, width=WIDTH)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(LAYOUTS)),
    place=st.integers(0, 10_000),
    damage=st.binary(min_size=1, max_size=8),
)
def test_damaged_bytes_load_or_raise_weights_error(tmp_path: Path, name: str, place: int, damage: bytes) -> None:
    path = LAYOUTS[name](tmp_path, vectors())
    content = path.read_bytes()
    place %= len(content)
    path.write_bytes(content[:place] + damage + content[place + len(damage) :])
    try:
        embedding = textual_inversion.load(path, width=WIDTH)
    except WeightsError:
        return
    assert embedding.vectors.shape[1] == WIDTH


def test_embedding_always_fits_into_a_chunk() -> None:
    assert len(Embedding(name="a", vectors=vectors(75)).vectors) == 75
    for wrong in (vectors(76), torch.zeros(0, WIDTH), torch.zeros(WIDTH)):
        with pytest.raises(ValueError, match="1 to 75 vectors"):
            Embedding(name="a", vectors=wrong)
