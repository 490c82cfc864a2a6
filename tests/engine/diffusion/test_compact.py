"""Compact checkpoint: codec, preconditioning, word embedding and folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training import captions, networks

from hiresfix.engine.diffusion import clip_tokenizer, prompts
from hiresfix.engine.diffusion.compact import checkpoint
from hiresfix.engine.diffusion.compact.checkpoint import SHARED_ROWS, CompactModel
from hiresfix.engine.diffusion.compact.dct_codec import CHANNELS, BlockTransform, dct_basis
from hiresfix.engine.diffusion.compact.preconditioning import Preconditioning, measure
from hiresfix.engine.diffusion.guidance import find_prediction
from hiresfix.engine.upscaler import Upscaler
from hiresfix.errors import WeightsError
from hiresfix.images import DecodedImage
from hiresfix.models.catalog import CLARITY
from hiresfix.models.store import ModelStore
from tests.sample_images import photo

CPU = torch.device("cpu")


def bands(scale: float = 0.7) -> BlockTransform:
    return BlockTransform(mean=(0.1,) * CHANNELS, scale=(scale,) * CHANNELS, device=CPU)


def preconditioning(residual: float = 0.25) -> Preconditioning:
    return Preconditioning(variance=(1.0,) * CHANNELS, regression=(0.8,) * CHANNELS, residual=(residual,) * CHANNELS)


def ignore_progress(fraction: float) -> None:
    pass


@pytest.fixture(scope="module")
def tiny() -> CompactModel:
    model = networks.build(networks.SIZES["tiny"], captions.word_ids(), bands(), preconditioning(), 1)
    for network in (model.unet, model.controlnet, model.text_encoder):
        network.eval().requires_grad_(False)
    return model


def test_basis_is_orthonormal() -> None:
    rows = dct_basis().flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(CHANNELS), atol=1e-6, rtol=0)


def test_latents_are_exact() -> None:
    x = torch.rand(2, 3, 24, 40)
    codec = bands()
    torch.testing.assert_close(codec.inverse(codec.forward(x)), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 5), (64, 300)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_codec_round_trip_keeps_samples(width: int, height: int, dtype: Any) -> None:
    rgb = (photo(width, height).astype(dtype) * (257 if dtype is np.uint16 else 1)).astype(dtype)
    codec, out = bands(), np.zeros_like(rgb)
    latent = codec.encode(rgb, ignore_progress)
    assert latent.shape == (1, CHANNELS, -(-height // 4), -(-width // 4))
    codec.decode(latent, out, ignore_progress)
    np.testing.assert_allclose(out.astype(int), rgb.astype(int), atol=1 if dtype is np.uint16 else 0)


def test_latent_of_wrong_size_is_rejected() -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        bands().decode(torch.zeros(1, CHANNELS, 3, 3), np.zeros((20, 12, 3), np.uint8), ignore_progress)


def test_untrained_network_gives_best_linear_estimate() -> None:
    """Compare with the regression of z on (x, c) over a million samples."""
    random = torch.Generator().manual_seed(0)
    clean = 1.5 * torch.randn(1, 1, 1000, 1000, generator=random)
    control = 0.9 * clean + 0.5 * torch.randn(clean.shape, generator=random)
    statistics = measure(clean, control)
    sigma = 0.7
    x = clean + sigma * torch.randn(clean.shape, generator=random)
    scale = statistics.scaling(sigma, 1.0, CPU)
    estimate = scale.skip * x + scale.control * control
    columns = torch.stack([x.flatten(), control.flatten()], 1).double()
    solved = torch.linalg.lstsq(columns, clean.flatten().double()[:, None]).solution.flatten()
    assert float(scale.skip) == pytest.approx(float(solved[0]), rel=0.01)
    assert float(scale.control) == pytest.approx(float(solved[1]), rel=0.01)
    error = float((clean - estimate).square().mean().sqrt())
    assert float(scale.output) == pytest.approx(error, rel=0.01)


def test_more_control_weight_moves_closer_to_control() -> None:
    controls = [preconditioning().scaling(1.0, weight, CPU).control for weight in (0.0, 0.3, 0.6, 1.0, 1.5, 3.0)]
    shares = [float(torch.as_tensor(control).flatten()[0]) for control in controls]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[-1] < 0.8


@pytest.mark.parametrize("changes", [{"residual": (0.0,)}, {"residual": (2.0,)}, {"variance": (1.0, 1.0)}])
def test_impossible_statistics_are_rejected(changes: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError):
        Preconditioning(**{"variance": (1.0,), "regression": (1.0,), "residual": (0.5,), **changes})


def test_known_words_have_own_rows_others_share(tiny: CompactModel) -> None:
    table: Any = tiny.text_encoder.embeddings.token_embedding
    row_of = table.row_of
    own_rows = [int(row_of[word]) for word in tiny.word_ids]
    assert own_rows == list(range(2, 2 + len(tiny.word_ids)))
    assert (int(row_of[clip_tokenizer.START]), int(row_of[clip_tokenizer.END])) == (0, 1)
    unknown = clip_tokenizer.token_ids("xylophone zeppelin quokka")
    assert all(
        2 + len(tiny.word_ids) <= int(row_of[number]) < 2 + len(tiny.word_ids) + SHARED_ROWS for number in unknown
    )


def test_prompt_emphasis_works(tiny: CompactModel) -> None:
    plain = prompts.encode("sharp, blurry", tiny.text_encoder)
    strong = prompts.encode("(sharp:1.5), blurry", tiny.text_encoder)
    assert plain.shape == (1, 77, 32)
    assert not torch.equal(plain, strong)


def test_load_returns_what_save_wrote(tiny: CompactModel, tmp_path: Path) -> None:
    checkpoint.save(tiny, tmp_path / "model", dtype=torch.float32)
    loaded = checkpoint.load(tmp_path / "model", device=CPU, dtype=torch.float32)
    for one, other in ((tiny.unet, loaded.unet), (tiny.controlnet, loaded.controlnet)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert (loaded.word_ids, loaded.codec, loaded.preconditioning) == (tiny.word_ids, tiny.codec, tiny.preconditioning)
    torch.testing.assert_close(
        prompts.encode("masterpiece", loaded.text_encoder), prompts.encode("masterpiece", tiny.text_encoder)
    )


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("model_index.json", "{}"),
        ("vae/config.json", '{"mean": [], "scale": []}'),
        ("vae/config.json", '{"mean": 3}'),
        ("scheduler/scheduler_config.json", "[1]"),
        ("scheduler/scheduler_config.json", '{"variance": [1], "regression": ["a"], "residual": [2]}'),
        ("text_encoder/words.json", '{"ids": [1, 2]}'),
        ("text_encoder/words.json", "not json"),
    ],
)
def test_damaged_folder_error_says_what_to_do(tiny: CompactModel, tmp_path: Path, file: str, text: str) -> None:
    checkpoint.save(tiny, tmp_path / "model")
    (tmp_path / "model" / file).write_text(text)
    with pytest.raises(WeightsError, match=r"Copy the whole folder here again|Name a folder"):
        checkpoint.load(tmp_path / "model", device=CPU, dtype=torch.float32)


def test_missing_weight_file_is_rejected(tiny: CompactModel, tmp_path: Path) -> None:
    checkpoint.save(tiny, tmp_path / "model")
    (tmp_path / "model" / "unet" / "model.safetensors").unlink()
    with pytest.raises(WeightsError):
        checkpoint.load(tmp_path / "model", device=CPU, dtype=torch.float32)


def test_unknown_prediction_type_is_rejected() -> None:
    with pytest.raises(WeightsError, match="epsilon"):
        find_prediction("sample")


def test_model_index_decides_the_format(tiny: CompactModel, tmp_path: Path) -> None:
    checkpoint.save(tiny, tmp_path / "model")
    assert checkpoint.is_compact(tmp_path / "model")
    (tmp_path / "model" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    assert not checkpoint.is_compact(tmp_path / "model")
    assert not checkpoint.is_compact(tmp_path)


def test_engine_runs_installed_compact_checkpoint(
    tiny: CompactModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIRESFIX_HOME", str(tmp_path / "home"))
    checkpoint.save(tiny, tmp_path / "trained", dtype=torch.float32)
    store = ModelStore.at_home()
    entry = store.add(tmp_path / "trained", name="own", licence="my own", commercial=True)
    recipe = replace(CLARITY.presets["clarity"], enlarger="realesr-animevideov3", checkpoint="own", seed=3, steps=2)
    recipe = replace(recipe, vae="", controlnet="", tile_height=64, tile_width=64, least_drift_db=0.0)
    upscaled = Upscaler("cpu").run(DecodedImage(rgb=photo(20, 12)), recipe, ignore_progress)
    assert upscaled.image.size == (40, 24)
    assert {"name": "own", "sha256": entry.sha256} in upscaled.metadata["weights"]
    store.remove("own")
    with pytest.raises(WeightsError, match="own is not installed"):
        Upscaler("cpu").run(DecodedImage(rgb=photo(20, 12)), recipe, ignore_progress)
