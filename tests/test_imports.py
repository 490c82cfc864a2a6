"""Imports stay light: only the engine loads torch, only the server loads the web framework."""

from __future__ import annotations

import subprocess
import sys

import pytest

HIDE = """
import sys, importlib.abc
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {hidden!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Hidden())
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("hiresfix", ("torch", "fastapi", "numpy", "PIL", "pydantic", "typer", "httpx")),
        ("hiresfix.client", ("torch", "fastapi", "numpy", "PIL", "pydantic", "typer")),
        ("hiresfix.cli", ("torch", "fastapi", "numpy", "PIL", "pydantic", "psycopg")),
        ("hiresfix.server.app", ("torch", "typer", "alembic", "sqlalchemy")),
        ("hiresfix.server.supervisor", ("torch", "fastapi")),
        ("hiresfix.engine.upscaler", ("fastapi", "psycopg", "httpx")),
    ],
)
def test_import_loads_only_what_it_needs(module: str, unwanted: tuple[str, ...]) -> None:
    done = run(f"import sys, {module}; print(*[name for name in {unwanted!r} if name in sys.modules])")
    assert (done.returncode, done.stdout.strip()) == (0, ""), done


def test_api_starts_without_torch() -> None:
    done = run(
        HIDE.format(hidden=["torch", "safetensors"])
        + "from hiresfix.server.app import create_app; from hiresfix.server.settings import Settings\n"
        "create_app(Settings(), database_url='postgresql://nowhere/x'); print('created')"
    )
    assert done.stdout.strip() == "created", done.stderr


@pytest.mark.parametrize(
    ("hidden", "arguments", "extra"),
    [("torch", ["upscale", sys.executable], "engine"), ("psycopg", ["credits", "balance"], "server")],
)
def test_missing_extra_explains_installation(hidden: str, arguments: list[str], extra: str) -> None:
    done = run(HIDE.format(hidden=[hidden]) + f"sys.argv[1:] = {arguments!r}\nfrom hiresfix.cli import main; main()")
    assert done.returncode == 1
    assert f"pip install 'hiresfix[{extra}]'" in done.stderr
