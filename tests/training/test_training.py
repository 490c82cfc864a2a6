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
from training import captions, degradations, evaluation, muon, objective, pictures, run

from hiresfix.engine.diffusion import clip_tokenizer, pipeline
from hiresfix.engine.diffusion.compact import checkpoint
from hiresfix.engine.diffusion.sampling import NoiseTable
from tests.sample_images import photo

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_enlarger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "ENLARGER", "realesr-animevideov3")


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


def options(folder: Path, out: Path, **changes: object) -> run.Options:
    given = run.Options(
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
def test_jpeg_damages_as_an_encoder_does(quality: int) -> None:
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


def test_degradations_keep_the_size_and_the_range() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 35, 50)
    for _ in range(12):
        y = degradations.worse(x, random)
        assert y.shape == x.shape
        assert 0 <= float(y.min()) <= float(y.max()) <= 1


def test_captions_say_what_was_done() -> None:
    """Targets whose caption says blurred have less detail than those that say sharp."""
    clean = torch.from_numpy(photo(64, 64).astype(np.float32) / 255).permute(2, 0, 1)[None].repeat(64, 1, 1, 1)
    said = captions.captioned(clean, torch.Generator().manual_seed(3))
    detail = said.target.diff(dim=2).abs().mean((1, 2, 3))
    blurred, sharp = (
        torch.tensor([bool(set(clip_tokenizer.token_ids(word)) & set(row.tolist())) for row in said.ids])
        for word in ("blurry", "sharp")
    )
    assert blurred.any()
    assert sharp.any()
    assert float(detail[blurred].mean()) < 0.8 * float(detail[sharp].mean())


def test_every_word_of_a_caption_is_known() -> None:
    known = {*captions.words(), clip_tokenizer.START, clip_tokenizer.END}
    clean = torch.rand(40, 3, 16, 16)
    said = captions.captioned(clean, torch.Generator().manual_seed(1))
    assert set(said.ids.flatten().tolist()) <= known


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (24, 24)])
def test_an_update_of_muon_is_nearly_orthogonal(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(muon.orthogonal(torch.randn(shape) @ torch.diag(torch.linspace(0.1, 5, shape[1]))))
    assert float(values.min()) > 0.3
    assert float(values.max()) < 1.6


def test_muon_and_adam_share_all_parameters(folder: Path, tmp_path: Path) -> None:
    network = torch.nn.ModuleDict({"conv_in": torch.nn.Conv2d(3, 8, 3), "inner": torch.nn.Conv2d(8, 8, 3)})
    inner, rest = muon.optimisers(network, lr=0.02, fine_lr=1e-3)
    assert [tuple(param.shape) for param in inner.param_groups[0]["params"]] == [(8, 8, 3, 3)]
    assert len(rest.param_groups[0]["params"]) == 3


def test_the_manifest_splits_and_without_one_the_name_does(folder: Path) -> None:
    train, dev = pictures.files(folder)
    assert [path.name for path in dev] == ["3.png"]
    (folder / "MANIFEST.csv").unlink()
    again = pictures.files(folder)
    assert again == pictures.files(folder)
    assert {path.name for path in train} <= {path.name for paths in again for path in paths}


def test_a_folder_without_pictures_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Name a folder"):
        pictures.files(tmp_path)


def test_crops_larger_than_every_picture_are_refused(folder: Path) -> None:
    photos = pictures.load(pictures.files(folder)[0], CPU)
    with pytest.raises(ValueError, match="--crop"):
        next(pictures.batches(photos, count=1, side=512, generator=torch.Generator()))


def test_enlarged_copies_fit_their_pictures_and_are_made_once(folder: Path, tmp_path: Path) -> None:
    photos = pictures.load(pictures.files(folder)[0][:1], CPU)
    (made,) = pictures.enlarged(photos, tmp_path / "pairs", CPU, seed=0)
    assert [copy.shape for copy in made.enlarged] == [photos[0].clean.shape] * len(pictures.REDUCTIONS)
    error = (made.enlarged[0].float() - made.clean.float()).abs().mean()
    assert float(error) < 20
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "pairs").iterdir()}
    pictures.enlarged(photos, tmp_path / "pairs", CPU, seed=0)
    assert times == {file: file.stat().st_mtime_ns for file in (tmp_path / "pairs").iterdir()}


def loss(out: Path, folder: Path) -> float:
    """Of the saved checkpoint, always on the same crops, noise and captions."""
    model = checkpoint.load(out / "checkpoint", device=CPU, dtype=torch.float32)
    random = torch.Generator().manual_seed(7)
    batch = next(pictures.batches(pictures.load(pictures.files(folder)[0], CPU), count=48, side=32, generator=random))
    with torch.inference_mode():
        return float(objective.losses(model, batch, NoiseTable.scaled_linear(), random).relative.mean())


def test_twenty_steps_learn_and_a_second_run_goes_on_to_a_checkpoint_that_the_engine_runs(
    folder: Path, tmp_path: Path
) -> None:
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
    enlarger = evaluation._enlarger(CPU)
    made = [
        pipeline.run(
            evaluation.engine_model(model),
            enlarger,
            photo(20, 12),
            replace(evaluation.recipe(), seed=seed),
            lambda f: None,
        ).rgb
        for seed in (1, 1, 2)
    ]
    assert made[0].shape == (24, 40, 3)
    np.testing.assert_array_equal(made[0], made[1])
    assert (made[0] != made[2]).any()


def test_a_grid_of_four_pixels_is_seen() -> None:
    rgb = np.random.default_rng(0).normal(128, 20, (96, 96, 3)).clip(0, 255).astype(np.uint8)
    assert evaluation.grid_peak(rgb) < 1.5
    rgb[::4] = np.clip(rgb[::4].astype(int) + 30, 0, 255)
    assert evaluation.grid_peak(rgb) > 2
