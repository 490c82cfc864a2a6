"""Training: degradations like those of real encoders, captions that are true, a loop that learns and goes on."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training import captions, dataset, degradations, evaluation, muon, objective, run

from hiresfix.engine.diffusion import clip_tokenizer, pipeline
from hiresfix.engine.diffusion.compact import checkpoint
from hiresfix.engine.diffusion.sampling import NoiseTable
from tests.sample_images import photo

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_upscale_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "UPSCALE_NETWORK", "realesr-animevideov3")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures as `--data` has them, one of them for development."""
    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        turned = np.roll(photo(96, 80), 13 * number, axis=number % 2)
        Image.fromarray(turned).save(data / f"{number}.png")
    (data / "MANIFEST.csv").write_text(
        "file,split\n" + "".join(f"{n}.png,{'dev' if n == 3 else 'train'}\n" for n in range(4))
    )
    return data


def options(folder: Path, out: Path, **changes: object) -> run.TrainingOptions:
    given = run.TrainingOptions(
        data=folder,
        out=out,
        minutes=30,
        size="tiny",
        device="cpu",
        batch=4,
        crop=32,
        ema=0.9,
        pairs=False,
        steps=20,
        warm_up=3,
    )
    return replace(given, **changes)  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize("quality", [20, 50, 85])
def test_jpeg_matches_a_real_encoder(quality: int) -> None:
    rgb = photo(64, 48)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=quality, subsampling=0)
    with Image.open(file) as opened:
        real = np.asarray(opened, np.float32) / 255
    x = torch.from_numpy(rgb.astype(np.float32) / 255).permute(2, 0, 1)[None]
    ours = degradations.jpeg(x, quality)[0].permute(1, 2, 0).numpy()
    from_real, from_clean = (float(np.abs(ours - y).mean()) for y in (real, rgb.astype(np.float32) / 255))
    assert from_real < 1.5 / 255
    assert from_real < from_clean / 2


def test_degradations_keep_size_and_range() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 35, 50)
    for _ in range(12):
        y = degradations.degrade(x, random)
        assert y.shape == x.shape
        assert 0 <= float(y.min()) <= float(y.max()) <= 1


def test_captions_describe_the_target() -> None:
    """Targets whose caption says blurred have less detail than those that say sharp."""
    clean = torch.from_numpy(photo(64, 64).astype(np.float32) / 255).permute(2, 0, 1)[None].repeat(64, 1, 1, 1)
    captioned = captions.add_captions(clean, torch.Generator().manual_seed(3))
    detail = captioned.target.diff(dim=2).abs().mean((1, 2, 3))
    blurred, sharp = (
        torch.tensor([bool(set(clip_tokenizer.token_ids(word)) & set(row.tolist())) for row in captioned.ids])
        for word in ("blurry", "sharp")
    )
    assert blurred.any()
    assert sharp.any()
    assert float(detail[blurred].mean()) < 0.8 * float(detail[sharp].mean())


def test_caption_words_have_own_rows() -> None:
    known = {*captions.word_ids(), clip_tokenizer.START, clip_tokenizer.END}
    clean = torch.rand(40, 3, 16, 16)
    captioned = captions.add_captions(clean, torch.Generator().manual_seed(1))
    assert set(captioned.ids.flatten().tolist()) <= known


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (24, 24)])
def test_muon_update_is_nearly_orthogonal(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(muon.orthogonalise(torch.randn(shape) @ torch.diag(torch.linspace(0.1, 5, shape[1]))))
    assert float(values.min()) > 0.3
    assert float(values.max()) < 1.6


def test_muon_and_adam_share_all_parameters(folder: Path, tmp_path: Path) -> None:
    network = torch.nn.ModuleDict({"conv_in": torch.nn.Conv2d(3, 8, 3), "inner": torch.nn.Conv2d(8, 8, 3)})
    inner, rest = muon.optimisers(network, lr=0.02, fine_lr=1e-3)
    assert [tuple(param.shape) for param in inner.param_groups[0]["params"]] == [(8, 8, 3, 3)]
    assert len(rest.param_groups[0]["params"]) == 3


def test_split_comes_from_manifest_or_name(folder: Path) -> None:
    train, dev = dataset.image_files(folder)
    assert [path.name for path in dev] == ["3.png"]
    (folder / "MANIFEST.csv").unlink()
    again = dataset.image_files(folder)
    assert again == dataset.image_files(folder)
    assert {path.name for path in train} <= {path.name for paths in again for path in paths}


def test_empty_folder_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Name a folder"):
        dataset.image_files(tmp_path)


def test_too_large_crops_are_rejected(folder: Path) -> None:
    photos = dataset.load_photos(dataset.image_files(folder)[0], CPU)
    with pytest.raises(ValueError, match="--crop"):
        next(dataset.batches(photos, count=1, side=512, generator=torch.Generator()))


def test_upscaled_copies_are_cached(folder: Path, tmp_path: Path) -> None:
    photos = dataset.load_photos(dataset.image_files(folder)[0][:1], CPU)
    (result,) = dataset.add_upscaled_copies(photos, tmp_path / "pairs", CPU, seed=0)
    assert [copy.shape for copy in result.upscaled] == [photos[0].clean.shape] * len(dataset.REDUCTIONS)
    error = (result.upscaled[0].float() - result.clean.float()).abs().mean()
    assert float(error) < 20
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "pairs").iterdir()}
    dataset.add_upscaled_copies(photos, tmp_path / "pairs", CPU, seed=0)
    assert times == {file: file.stat().st_mtime_ns for file in (tmp_path / "pairs").iterdir()}


def loss(out: Path, folder: Path) -> float:
    """Of the saved checkpoint, always on the same crops, noise and captions."""
    model = checkpoint.load(out / "checkpoint", device=CPU, dtype=torch.float32)
    random = torch.Generator().manual_seed(7)
    batch = next(
        dataset.batches(dataset.load_photos(dataset.image_files(folder)[0], CPU), count=48, side=32, generator=random)
    )
    with torch.inference_mode():
        return float(objective.losses(model, batch, NoiseTable.scaled_linear(), random).relative.mean())


def test_training_learns_resumes_and_engine_runs_it(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run.train(options(folder, out, steps=1, minutes=1e9))
    begun = loss(out, folder)
    assert len(run.train(options(folder, out, steps=19))) == 19
    assert loss(out, folder) < 0.98 * begun

    run.train(options(folder, out, steps=2))
    with (out / "log.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 23))
    with (out / "dev.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [1, 20, 22]
    with Image.open(out / "sheet-0000022.png") as sheet:
        assert sheet.size == (3 * 80, 80)

    model = checkpoint.load(out / "checkpoint", device=CPU, dtype=torch.float32)
    network = evaluation._superres_network(CPU)
    result = [
        pipeline.run(
            evaluation.as_engine_model(model),
            network,
            photo(20, 12),
            replace(evaluation.recipe(), seed=seed),
            lambda f: None,
        ).rgb
        for seed in (1, 1, 2)
    ]
    assert result[0].shape == (24, 40, 3)
    np.testing.assert_array_equal(result[0], result[1])
    assert (result[0] != result[2]).any()


def test_grid_peak_detects_four_pixel_grid() -> None:
    rgb = np.random.default_rng(0).normal(128, 20, (96, 96, 3)).clip(0, 255).astype(np.uint8)
    assert evaluation.grid_peak(rgb) < 1.5
    rgb[::4] = np.clip(rgb[::4].astype(int) + 30, 0, 255)
    assert evaluation.grid_peak(rgb) > 2
