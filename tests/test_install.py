"""The plain installation: a wheel in an environment with its declared dependencies and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import ROOT
from tests.conftest import png
from tests.fake_server import FakeServer, json_answer

MAX_IMPORT_SECONDS = 0.3
"""Processor time of `import hiresfix`; it takes a tenth of that."""


def required(name: str, seen: dict[str, Distribution]) -> Iterator[Distribution]:
    """Yield what `pip install name` installs, itself included."""
    package = distribution(name)
    key = package.metadata["Name"].lower()
    if key in seen:
        return
    seen[key] = package
    yield package
    for line in package.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield from required(requirement.name, seen)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of that environment. Dependencies are links to this environment's files: no network."""
    folder = tmp_path_factory.mktemp("plain")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=100)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False, system_site_packages=False, symlinks=True)
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    (metadata,) = packages.glob("hiresfix-*.dist-info/METADATA")
    requirements = [
        Requirement(line.partition(": ")[2])
        for line in metadata.read_text().splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    assert {requirement.name for requirement in requirements} == {"httpx", "rich", "typer"}
    seen: dict[str, Distribution] = {}
    for requirement in requirements:
        for package in required(requirement.name, seen):
            for top in {path.parts[0] for path in package.files or () if path.parts[0] not in ("..", "__pycache__")}:
                if not (packages / top).exists():
                    (packages / top).symlink_to(Path(str(package.locate_file(top))))
    return folder / "env" / "bin" / "python"


def run(python: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), "-I", *arguments], capture_output=True, text=True, timeout=100, env={"PATH": "", **environment}
    )


def test_import_is_light_in_plain_install(python: Path) -> None:
    done = run(
        python,
        "-c",
        "import sys, time; started = time.process_time(); import hiresfix; took = time.process_time() - started\n"
        "heavy = {'torch', 'fastapi', 'numpy', 'PIL', 'pydantic', 'httpx', 'typer'}\n"
        "print(sorted(heavy & set(sys.modules)), hiresfix.__file__.split('site-packages')[0])\n"
        "hiresfix.Client; print(sorted({'torch', 'fastapi', 'numpy', 'PIL', 'pydantic'} & set(sys.modules)))\n"
        "print(took)",
    )
    assert done.returncode == 0, done.stderr
    first, then, took = done.stdout.splitlines()
    imported, place = first.split("] ")
    assert (imported, then) == ("[", "[]")
    assert float(took) < MAX_IMPORT_SECONDS
    assert Path(place) == python.parent.parent / "lib" / python.parent.parent.glob("lib/python*").__next__().name
    for missing in ("torch", "fastapi", "numpy", "PIL"):
        assert run(python, "-c", f"import {missing}").returncode == 1


def test_client_and_command_work_in_plain_install(python: Path, fake_server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(png(9, 8))
    fake_server.answer = lambda request: (
        (200, {}, b"image") if request.path == "/r.png"
        else json_answer(202, {"jobId": "7", "status": "QUEUED"}) if request.path == "/v2/images/upscale"
        else json_answer(404, {"error": "Not found"}) if request.path.endswith("/events")
        else json_answer(200, {"id": "7", "status": "COMPLETED", "progress": 100, "result": {"images": ["/r.png"]}})
    )  # fmt: skip
    server = {"HIRESFIX_URL": fake_server.url, "HIRESFIX_API_KEY": "afk_x", "XDG_STATE_HOME": str(tmp_path / "state")}
    program = f"import hiresfix; hiresfix.Client().upscale({str(tmp_path / 'in.png')!r}, {str(tmp_path / 'a.png')!r})"
    done = run(python, "-c", program, **server)
    assert done.returncode == 0, done.stderr
    done = run(python, "-m", "hiresfix", "upscale", str(tmp_path / "in.png"), "-o", str(tmp_path / "b.png"), **server)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes() == b"image"
    local = f"import hiresfix; hiresfix.upscale({str(tmp_path / 'in.png')!r})"
    for arguments in (("-m", "hiresfix", "upscale", "--local", str(tmp_path / "in.png")), ("-c", local)):
        done = run(python, *arguments, **server)
        assert done.returncode == 1
        assert "pip install 'hiresfix[engine]'" in done.stderr


SNIPPET = """
import asyncio
from collections.abc import AsyncIterator

import hiresfix

client: hiresfix.Client = hiresfix.Client(url="http://127.0.0.1:1", api_key="afk_x")
job = client.images.upscale("in.jpg", scale=2, creativity=0.35)
finished: hiresfix.Job = job.wait(on_progress=lambda state: print(state.progress))
seed: int | None = job.result().seed
names: list[str] = [handle.id for handle in client.jobs.list(limit=3)]
reveal_type(hiresfix.upscale("in.jpg", scale=2).save("out.png"))


async def main() -> None:
    async with hiresfix.AsyncClient() as remote:
        handle = await remote.images.upscale(b"...", model="faithful-upscale", content="anime")
        async for state in handle.events():
            reveal_type(state)


asyncio.run(main())
client.images.upscale("in.jpg", creativty=0.35)
client.images.upscale("in.jpg", seed="seven")
hiresfix.Clint
"""


def test_user_program_passes_strict_mypy(python: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SNIPPET)
    command = [
        sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "--cache-dir", os.devnull,
        "--config-file", "", "--no-error-summary", "program.py",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    messages = [line.split(": ", 2) for line in done.stdout.splitlines()]
    lines = SNIPPET.splitlines()
    errors = {lines[int(place.split(":")[1]) - 1] for place, kind, _ in messages if kind == "error"}
    assert errors == set(lines[-3:]), done.stdout
    notes = " ".join(text for _, kind, text in messages if kind == "note")
    assert "pathlib.Path" in notes
    assert "hiresfix.client.values.Job" in notes
