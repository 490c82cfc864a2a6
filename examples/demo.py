"""Demo of the whole product: start a server, upscale a photo through its HTTP API, stop the server.

Run by `make demo`. It uses its own home and embedded PostgreSQL, and removes them afterwards; the result stays in
`demo/`.
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
PHOTO = HERE / "tea-garden.png"
SCALE = 4
DETAIL = (28, 6, 148, 126)
"""Part of the photo shown in the comparison: left, top, right, bottom in input pixels."""

console = Console(highlight=False)


class QuietHandler(SimpleHTTPRequestHandler):
    """Request handler without a log line per request."""

    def log_message(self, *args: object) -> None: ...


@contextlib.contextmanager
def photo_server() -> Iterator[str]:
    """Serve the photo on this machine, like a client's own web server; yields its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(HERE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{PHOTO.name}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def hiresfix_server(home: Path, log: Path) -> Iterator[tuple[str, str]]:
    """Run `hiresfix serve` on a free port; yields its URL and an API key. Stops it cleanly at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The photo is on this machine; by default the server does not fetch from private addresses.
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
    """Submit the quick-start request of the public model page, with our host, key and image URL; returns the job id."""
    body = {
        "model": "clarity-upscale",
        "clarityUpscaleParams": {
            "image": image,
            "prompt": "Optional — describe the kind of detail to add",
            "scale_factor": str(SCALE),
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
    display = f"{shlex.join(command[:4])} \\\n    -H 'X-API-Key: afk_…' -H '{command[7]}' \\\n    -d '{text}'"
    console.print(f"[dim]$ {display}")
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
    """Poll every two seconds until COMPLETED or FAILED, as on the model page; returns the job."""
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
    """Save the same detail side by side at 100 %: the input upscaled by bicubic interpolation, and the result."""
    with Image.open(before) as source, Image.open(after) as result:
        bicubic = source.resize(result.size, Image.Resampling.BICUBIC)
        left, top, right, bottom = (SCALE * edge for edge in DETAIL)
        gap, width, height = 8, right - left, bottom - top
        sheet = Image.new("RGB", (2 * width + gap, height), "white")
        sheet.paste(bicubic.crop((left, top, right, bottom)), (0, 0))
        sheet.paste(result.convert("RGB").crop((left, top, right, bottom)), (width + gap, 0))
        sheet.save(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the result")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    # Not in the checkout: as root, PostgreSQL runs as another user, who may not be able to read it.
    home = Path(tempfile.mkdtemp(prefix="hiresfix-demo-"))
    home.chmod(0o755)
    try:
        console.print("Starting hiresfix: embedded PostgreSQL, API, one worker …")
        with photo_server() as image, hiresfix_server(home, out / "server.log") as (url, key):
            started = time.monotonic()
            job = poll(url, key, submit(url, key, image))
            if job["status"] != "COMPLETED":
                sys.exit(f"The job failed: {job['error']}")
            result = out / f"{PHOTO.stem}-{SCALE}x.png"
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
