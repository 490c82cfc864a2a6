"""Comparison with servers that a user could put around the same engine: LitServe and the HTTP server of Cog.

Each is installed from PyPI into a temporary environment and used as its documentation shows, with the same fake engine,
client and image. They answer when the image is done and store nothing: no accounts, credits or limits, no job that
survives a crash, no second attempt, no webhook, and images are decoded in the process that serves everybody. The
difference in cost pays for these features.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks import service_stack
from benchmarks.http_load import LoadResult, drive, request

SERVERS = Path(__file__).parent / "peer_servers"
PACKAGES = ("litserve", "cog", "numpy", "pillow")
STARTING_SECONDS = 120.0
WARM_UP = 2.0

console = Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A server: how to start it and what to send. `connections` is tried in addition to one."""

    name: str
    command: tuple[str, ...]
    path: str
    body: Mapping[str, Any]
    connections: int


def _peers(image: str) -> Sequence[Peer]:
    return (
        Peer(
            name="litserve",
            command=("with_litserve.py",),
            path="/predict",
            body={"image": image},
            connections=16,
        ),
        Peer(
            name="cog",
            command=("-m", "cog.server.http", "--host", "127.0.0.1"),
            path="/predictions",
            body={"input": {"image": image}},
            connections=1,
        ),
    )


def measure(image: str, seconds: float) -> list[dict[str, Any]]:
    """Measure images per second, latency and CPU time of each, with one and with several connections."""
    rows = []
    with service_stack.folder() as home:
        python = _environment(home)
        for peer in _peers(image):
            with _running(python, peer, home) as (port, process):
                content = request("POST", peer.path, body=json.dumps(peer.body).encode())
                for connections in sorted({1, peer.connections}):
                    _run(port, content, connections, WARM_UP)
                    before = service_stack.processor_seconds(process)
                    load = _run(port, content, connections, seconds)
                    cpu_seconds = service_stack.processor_seconds(process) - before
                    rows.append(
                        {
                            "server": f"{peer.name} {_version(python, peer.name)}",
                            "connections": connections,
                            "per_second": load.rate,
                            "refused": load.refused / len(load.latencies),
                            **{f"p{share}_ms": load.percentile(share) for share in (50, 95, 99)},
                            "processor_ms": {
                                "server": 1000 * cpu_seconds / len(load.latencies),
                                "client": 1000 * load.client_seconds / len(load.latencies),
                            },
                        }
                    )
                    console.print(rows[-1])
    return rows


def _run(port: int, content: bytes, connections: int, seconds: float) -> LoadResult:
    load = asyncio.run(drive(port, itertools.repeat(content), connections=connections, seconds=seconds, busy=409))
    load.require(200)
    return load


def _environment(home: Path) -> Path:
    """Create the environment, which takes a minute or two, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
    python = home / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--quiet", *PACKAGES], check=True)
    return python


def _version(python: Path, package: str) -> str:
    program = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def _running(python: Path, peer: Peer, home: Path) -> Iterator[tuple[int, psutil.Process]]:
    port = service_stack.free_port()
    environment = {
        **os.environ,
        "PATH": f"{python.parent}:{os.environ['PATH']}",  # cog finds its worker by name
        "PORT": str(port),
        "COG_PREDICT_TYPE_STUB": "with_cog.py:Predictor",
        "PYTHONPATH": str(SERVERS),
        "OMP_NUM_THREADS": "1",
    }
    with (home / f"{peer.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [python, *peer.command], cwd=SERVERS, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_until_ready(port, peer, process, home)
        yield port, psutil.Process(process.pid)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.wait()


def _wait_until_ready(port: int, peer: Peer, process: subprocess.Popen[bytes], home: Path) -> None:
    """Wait until it answers a request with 200: a server that listens may still be loading."""
    content = request("POST", peer.path, body=json.dumps(peer.body).encode())
    deadline = time.monotonic() + STARTING_SECONDS
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            load = asyncio.run(drive(port, iter([content]), connections=1, seconds=60))
            if set(load.statuses) == {200}:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{peer.name} did not start:\n{(home / f'{peer.name}.log').read_text()[-2000:]}")
        time.sleep(0.3)
