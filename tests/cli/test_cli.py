"""The command line in real processes: real files, a real network, real messages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import forkserver
from tests.conftest import png

ANIME = ("--model", "faithful-upscale", "--content", "anime")
"""The smallest network."""


def hiresfix(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return forkserver.run([*map(str, arguments)], folder=cwd)


@pytest.fixture(autouse=True)
def empty_resume_log(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests out of the resume log of the user who runs them."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(png(33, 21))
    return path


def test_default_doubles_size_next_to_input(photo: Path) -> None:
    command = [sys.executable, "-m", "hiresfix", "upscale", str(photo), *ANIME]  # with an interpreter of its own
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    with Image.open(photo.with_name("photo-2x.png")) as result:
        assert result.size == (66, 42)
    assert "33x21 -> 66x42" in done.stderr


def test_output_sets_path_and_format(photo: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "big.jpg"
    assert hiresfix("upscale", photo, "-o", target, "--scale", "4", *ANIME).returncode == 0
    with Image.open(target) as result:
        assert (result.size, result.format) == ((132, 84), "JPEG")


def test_damaged_file_does_not_stop_the_others(photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(9, 8))
    (folder / "broken.png").write_bytes(png(30, 30)[:-200])
    (folder / "notes.txt").write_text("not an image")
    done = hiresfix("upscale", folder, photo, "-o", tmp_path / "out", *ANIME)
    assert done.returncode == 1
    assert "broken.png" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-2x.png", "photo-2x.png"]


def test_folder_rerun_and_names_like_markup(tmp_path: Path) -> None:
    folder = tmp_path / "in [x["
    folder.mkdir()
    for name in ("a.png", "a.gif", "[red]b.png"):
        Image.new("RGB", (5, 4), "teal").save(folder / name)
    expected = ["[red]b-2x.png", "a.gif-2x.png", "a.png-2x.png"]
    for _ in range(2):
        done = hiresfix("upscale", folder, folder / "a.png", *ANIME)
        assert done.returncode == 0, done.stderr
        assert sorted(Path(line).name for line in done.stdout.splitlines()) == expected
        assert sorted(path.name for path in folder.iterdir()) == sorted([*expected, "a.png", "a.gif", "[red]b.png"])


def test_ignored_prompt_is_noted(photo: Path) -> None:
    assert "does not follow prompts" in hiresfix("upscale", photo, "--prompt", "leaves").stderr


def test_same_seed_makes_same_image(photo: Path, tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        assert hiresfix("upscale", photo, "--seed", "5", "-o", tmp_path / name).returncode == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_transparency_is_kept(tmp_path: Path) -> None:
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[4:12, 4:12] = (200, 30, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "cut.png")
    assert hiresfix("upscale", tmp_path / "cut.png", *ANIME).returncode == 0
    with Image.open(tmp_path / "cut-2x.png") as result:
        assert (result.mode, result.getpixel((0, 0))[3], result.getpixel((16, 16))[3]) == ("RGBA", 0, 255)  # type: ignore[index] # a four-channel pixel is a tuple


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--scale", "3"), "Expected one of 1, 2, 4, 8"),
        (("--creativity", "2"), "between 0 and 1"),
        (("--creativity", "lots"), "Expected a number"),
        (("--seed", "1.5"), "Expected an integer"),
        (("--model", "topaz"), "clarity-upscale"),
        (("--preset", "magic"), "offline, clarity, clarity-classic"),
        (("--content", "anime"), "no such parameter"),
        (("--format", "tiff"), "png, jpg, webp"),
        (("-o", "out.tiff"), "use .png, .jpg or .webp"),
        (("-o", "out.png", "--format", "jpg"), "does not fit"),
        (("--device", "tpu"), "cpu"),
        (("-o", "photo.png"), "would overwrite"),
    ],
)
def test_wrong_options_explain_valid_values(photo: Path, arguments: tuple[str, ...], hint: str) -> None:
    done = hiresfix("upscale", photo.name, *arguments, cwd=photo.parent)
    assert done.returncode in (1, 2)
    words = " ".join(done.stderr.replace("│", " ").split())
    assert hint in words
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in photo.parent.iterdir()) == ["photo.png"]


def test_missing_file_and_empty_folder_are_reported(tmp_path: Path) -> None:
    assert "does not exist" in hiresfix("upscale", tmp_path / "nothing.png").stderr
    assert "No images" in hiresfix("upscale", tmp_path).stderr


def test_too_large_result_names_limit(tmp_path: Path) -> None:
    (tmp_path / "wide.png").write_bytes(png(4000, 600))
    done = hiresfix("upscale", tmp_path / "wide.png", "--scale", "8")
    assert done.returncode == 1
    assert "64 MP" in done.stderr


def test_doctor_lists_device_and_weights(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hiresfix", "doctor"],
        capture_output=True, text=True, timeout=100, env={"HIRESFIX_HOME": str(tmp_path), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("device", "realsr-df2k", "not running"):
        assert word in done.stdout


def test_doctor_explains_unreachable_database(tmp_path: Path) -> None:
    environment = {"HIRESFIX_HOME": str(tmp_path), "HIRESFIX_DATABASE_URL": "postgresql://127.0.0.1:1/x", "PATH": ""}
    command = [sys.executable, "-m", "hiresfix", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 1
    assert "Check HIRESFIX_DATABASE_URL" in done.stdout


def test_invalid_setting_is_named(tmp_path: Path) -> None:
    environment = {"HIRESFIX_HOME": str(tmp_path), "HIRESFIX_LEASE_SECONDS": "soon", "PATH": ""}
    command = [sys.executable, "-m", "hiresfix", "migrate"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 1
    assert "HIRESFIX_LEASE_SECONDS" in done.stderr
