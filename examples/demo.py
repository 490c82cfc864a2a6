"""The whole product once: start the server, upscale a real photograph through its HTTP API, stop the server.

Run by `make demo`. It uses a home and an embedded PostgreSQL of its own, which are removed afterwards; the
result stays in `demo/`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

HERE = Path(__file__).parent
PHOTO = HERE / "colosseum.png"
DETAIL = (96, 64, 224, 192)
"""Part of the photograph that the comparison enlarges: left, top, right, bottom in input pixels."""

console = Console(highlight=False)


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves the photograph without a log line for each request."""

    def log_message(self, *args: object) -> None: ...


@contextlib.contextmanager
def photo_server() -> Iterator[str]:
    """The photograph on a URL of this machine, as a client's own web server would have it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(HERE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{PHOTO.name}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def hiresfix_server(home: Path, log: Path) -> Iterator[tuple[str, str]]:
    """`hiresfix serve` on a free port; yields its URL and an API key. Stopped in order at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The photograph comes from this very machine, which the server refuses unless told otherwise.
    environment = {**os.environ, "HIRESFIX_HOME": str(home), "HIRESFIX_ALLOW_PRIVATE_ADDRESSES": "1"}
    environment.pop("HIRESFIX_DATABASE_URL", None)
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "hiresfix", "serve", "--port", str(port)],
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until_ready(url, server, log)
        key = subprocess.run(
            [sys.executable, "-m", "hiresfix", "keys", "create", "demo"],
            env=environment, stdout=subprocess.PIPE, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        yield url, key
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit(f"The server did not start:\n{log.read_text()}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        time.sleep(0.2)
    sys.exit(f"The server was not ready after two minutes:\n{log.read_text()}")


def submit(url: str, key: str, image: str) -> str:
    """The quick-start request of the public model page: only host, key and image URL are ours."""
    body = {
        "model": "clarity-upscale",
        "clarityUpscaleParams": {
            "image": image,
            "prompt": "Optional — describe the kind of detail to add",
            "scale_factor": "2",
            "creativity": 0.35,
        },
    }
    text = json.dumps(body, indent=2, ensure_ascii=False)
    command = [
        "curl", "-X", "POST", f"{url}/v2/images/upscale",
        "-H", f"X-API-Key: {key}",
        "-H", "Content-Type: application/json",
        "-d", text,
    ]  # fmt: skip
    shown = f"{shlex.join(command[:4])} \\\n    -H 'X-API-Key: afk_…' -H '{command[7]}' \\\n    -d '{text}'"
    console.print(f"[dim]$ {shown}")
    if shutil.which("curl"):
        command += ["--silent", "--show-error"]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    else:
        headers = {"X-API-Key": key, "Content-Type": "application/json"}
        answer = httpx.post(f"{url}/v2/images/upscale", headers=headers, content=text.encode(), timeout=60).text
    console.print(f"[dim]{answer}")
    accepted = json.loads(answer)
    if "jobId" not in accepted:
        sys.exit(f"The server refused the request: {answer}")
    return str(accepted["jobId"])


def poll(url: str, key: str, job_id: str) -> dict[str, Any]:
    """As the model page does: every two seconds until COMPLETED or FAILED."""
    percent = TextColumn("{task.percentage:>3.0f} %")
    bar = Progress(TextColumn("{task.description}"), BarColumn(), percent, TimeElapsedColumn(), console=console)
    with bar as progress:
        task = progress.add_task("QUEUED", total=100)
        while True:
            job: dict[str, Any] = httpx.get(f"{url}/v2/jobs/{job_id}", headers={"X-API-Key": key}).json()
            progress.update(task, description=job["status"], completed=job["progress"])
            if job["status"] in ("COMPLETED", "FAILED"):
                return job
            time.sleep(2)


def compare(before: Path, after: Path, target: Path) -> None:
    """The same detail twice, side by side: the input enlarged by bicubic interpolation, and the result."""
    size = (640, 640)
    with Image.open(before) as source, Image.open(after) as result:
        scale = result.width // source.width
        bicubic = source.resize(result.size, Image.Resampling.BICUBIC)
        left, top, right, bottom = (scale * edge for edge in DETAIL)
        box = (left, top, right, bottom)
        sheet = Image.new("RGB", (2 * size[0] + 8, size[1]), "white")
        sheet.paste(bicubic.crop(box).resize(size, Image.Resampling.NEAREST), (0, 0))
        sheet.paste(result.convert("RGB").crop(box).resize(size, Image.Resampling.NEAREST), (size[0] + 8, 0))
        sheet.save(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the result")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    # Not in the checkout: as root, PostgreSQL runs as a user of its own, who may not be able to enter it.
    home = Path(tempfile.mkdtemp(prefix="hiresfix-demo-"))
    home.chmod(0o755)
    try:
        console.print("Starting hiresfix: embedded PostgreSQL, API, one worker …")
        with photo_server() as image, hiresfix_server(home, out / "server.log") as (url, key):
            started = time.monotonic()
            job = poll(url, key, submit(url, key, image))
            if job["status"] != "COMPLETED":
                sys.exit(f"The job failed: {job['error']}")
            result = out / f"{PHOTO.stem}-2x.png"
            result.write_bytes(httpx.get(job["result"]["images"][0]).raise_for_status().content)
            seconds = time.monotonic() - started
    finally:
        shutil.rmtree(home, ignore_errors=True)
    compare(PHOTO, result, out / "before-after.png")
    console.print(f"[bold green]Done in {seconds:.0f} s:[/] {result} ({job['width']}x{job['height']})")
    console.print(f"Compare: {out / 'before-after.png'} (left: bicubic, right: hiresfix)")
    for warning in job["metadata"]["warnings"]:
        console.print(f"[dim]note: {warning}")


if __name__ == "__main__":
    main()
