"""`hiresfix models` in real processes, with a real server on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Site
from tests.models.test_store import OWN, safetensors

FILE = safetensors()
SHA256 = hashlib.sha256(FILE).hexdigest()


class Operator:
    """Runs the command with its own home, whose list has one more model: `house`."""

    def __init__(self, home: Path, site: Site) -> None:
        self.home = home
        self.site = site
        url = site.add("/house.safetensors", FILE)
        (home / "models.toml").write_text(OWN.format(name="house", file="house.safetensors", url=url))

    def models(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hiresfix", "models", *map(str, arguments)],
            capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL,
            env={**os.environ, "HIRESFIX_HOME": str(self.home)},
        )  # fmt: skip


@pytest.fixture
def operator(tmp_path: Path, site: Site) -> Operator:
    return Operator(tmp_path, site)


def test_list_shows_all_files_with_licences(operator: Operator) -> None:
    done = operator.models("list")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "installed" in lines["realsr-df2k"]
    for name, words in {
        "4x-ultrasharp": ("enlarger", "can be pulled", "no", "CC BY-NC-SA 4.0"),
        "vae-ft-mse": ("vae", "334.6 MB", "yes", "MIT"),
        "juggernaut-reborn": ("checkpoint", "2.13 GB", "unknown", "OpenRAIL"),
        "house": ("lora",),
    }.items():
        assert all(word in lines[name] for word in words), lines[name]


def test_pull_verify_and_remove(operator: Operator) -> None:
    done = operator.models("pull", "house", "--yes")
    assert done.returncode == 0, done.stderr
    assert "licence  MIT" in done.stderr
    assert "commercial use: unknown" in done.stderr
    assert f"SHA-256 {SHA256} (not listed; recorded" in done.stderr
    rows = {row["name"]: row for row in json.loads(operator.models("list", "--json").stdout)}
    assert (rows["house"]["state"], rows["house"]["sha256"], rows["house"]["bytes"]) == ("installed", SHA256, len(FILE))
    assert "already installed" in operator.models("pull", "house").stderr
    assert operator.models("verify").returncode == 0
    (operator.home / "models" / "house.safetensors").write_bytes(FILE[:-1])
    done = operator.models("verify", "house")
    assert (done.returncode, "is not what was installed" in done.stderr) == (1, True)
    assert "Removed house" in operator.models("remove", "house").stdout
    assert operator.site.fetched == ["/house.safetensors"]


def test_pull_requires_accepted_licence(operator: Operator) -> None:
    done = operator.models("pull", "house")
    assert done.returncode != 0
    assert "licence  MIT" in done.stderr
    assert "--yes" in done.stderr
    assert operator.site.fetched == []


def test_failed_pull_does_not_stop_the_others(operator: Operator) -> None:
    lists = operator.home / "models.toml"
    gone = OWN.format(name="gone", file="gone.safetensors", url="http://127.0.0.1:1/gone.safetensors")
    lists.write_text(lists.read_text() + gone)
    done = operator.models("pull", "gone", "house", "--yes")
    assert done.returncode == 1
    assert "127.0.0.1 cannot be reached" in done.stderr
    assert "models add FILE" in done.stderr
    assert "Traceback" not in done.stderr
    assert (operator.home / "models" / "house.safetensors").read_bytes() == FILE


def test_add_detects_kind_and_requires_licence(operator: Operator, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(FILE)
    done = operator.models("add", path)
    assert (done.returncode, "The licence of the file is not known" in done.stderr) == (1, True)
    done = operator.models("add", path, "--licence", "my own", "--no-commercial")
    assert done.stdout.startswith("Added the lora mine ("), done.stderr
    assert "mine" in operator.models("list").stdout


@pytest.mark.parametrize("arguments", [("pull", "nothing"), ("verify", "nothing"), ("remove", "nothing")])
def test_unknown_name_is_reported(operator: Operator, arguments: tuple[str, ...]) -> None:
    done = operator.models(*arguments)
    assert done.returncode in (1, 2)
    assert "nothing" in done.stderr
    assert "Traceback" not in done.stderr
