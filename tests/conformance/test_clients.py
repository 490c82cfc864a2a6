"""Programs that other people wrote, or that do exactly what theirs do, against a real API process and a real worker."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.conftest import Site, png
from tests.journey.conftest import Service
from tests.server.conftest import Api

HERE = Path(__file__).parent
PAGES = Path(os.environ.get("HIRESFIX_SEED_PAGES") or HERE.parents[2] / "shared" / "seeds")
"""The published pages, one text file for each language; they are not ours to put into the repository."""
SDK = os.environ.get("HIRESFIX_APIFRAME_SDK")
"""The published Node SDK, built: its `dist/index.js`. No registry has it; its repository is apiframe-nodejs-sdk."""
COMPILERS = Path(os.environ.get("HIRESFIX_NODE_MODULES") or HERE.parents[1] / "tools" / "js" / "node_modules" / ".bin")

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
CURL = shutil.which("curl")

PROGRAMS: Mapping[str, Callable[[str], list[str]]] = {
    "curl": lambda snippet: ["bash", "-c", f"set -e; {snippet}"],
    "python": lambda snippet: [sys.executable, "-c", snippet],
    "javascript": lambda snippet: [NODE or "node", "--input-type=module", "--eval", snippet],
}
SNIPPETS: Mapping[str, tuple[str, str]] = {
    "curl": (r"curl -X POST .*?}'$", r"curl https://\S+/v2/jobs/JOB_ID.*?-H \"[^\"]+\"$"),
    "python": (r"import requests$.*?^print\(response\.json\(\)\)", r"import requests, time$.*?^print\(job\[.*?\]\)"),
    "javascript": (
        r"const response = await fetch.*?^console\.log\(jobId\);",
        r"let job;$.*?^console\.log\(job\.result\);",
    ),
}
"""Patterns of the submission and the polling loop on a page, by language."""


@dataclass(frozen=True, kw_only=True)
class Page:
    text: str

    def snippet(self, language: str, which: int) -> str:
        matches = re.findall(rf"^{SNIPPETS[language][which]}", self.text, re.DOTALL | re.MULTILINE)
        assert len(matches) == 1, f"{len(matches)} snippets of {language} where one was expected"
        return str(matches[0])


def page_in(language: str) -> Page:
    """The page of one language, recognised by its script: kana are Japanese, hangul syllables Korean."""
    letters = {"ja": re.compile("[\u3041-\u30ff]"), "ko": re.compile("[\uac00-\ud7a3]")}[language]
    texts = [path.read_text(encoding="utf-8") for path in sorted(PAGES.glob("*.txt"))]
    (text,) = (text for text in texts if letters.search(text))
    return Page(text=text)


def run(command: list[str]) -> str:
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def running(service: Service) -> Service:
    service.api()
    service.worker()
    return service


@pytest.mark.skipif(not PAGES.is_dir(), reason="the published pages are not beside the repository")
@pytest.mark.parametrize("language", ["ja", "ko"])
def test_01_published_snippets_run(running: Service, site: Site, language: str) -> None:
    page = page_in(language)
    photo = site.add("/input.jpg", png(20, 14))
    programs = {name for name in PROGRAMS if {"curl": CURL, "javascript": NODE}.get(name, "here")}

    def ours(snippet: str, job: str = "JOB_ID") -> str:
        """Replace address, key, image and job, and nothing else."""
        for theirs, own in (
            ("https://api.apiframe.ai", running.url),
            ("afk_your_api_key_here", running.key),
            ("https://example.com/input.jpg", photo),
            ("JOB_ID", job),
        ):
            snippet = snippet.replace(theirs, own)
        return snippet

    for name in sorted(programs):
        submitted = run(PROGRAMS[name](ours(page.snippet(name, 0))))
        (job,) = re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", submitted)
        if name == "curl":  # looks once
            assert set(json.loads(submitted)) == {"jobId", "status"}
            running.finished(job)
            assert json.loads(run(PROGRAMS[name](ours(page.snippet(name, 1), job))))["status"] == "COMPLETED"
        else:
            assert f"{running.url}/files/images/{job}-1.png" in run(PROGRAMS[name](ours(page.snippet(name, 1), job)))
        image = httpx.get(running.job(job)["result"]["images"][0]).content
        assert Image.open(io.BytesIO(image)).size == (40, 28)
    assert running.value("select credits from teams") == 100 - 3 * len(programs)
    if missing := PROGRAMS.keys() - programs:
        pytest.skip(f"ran all but {', '.join(sorted(missing))}, not installed here")


def output_of(script: str, *arguments: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(run([NODE or "node", str(HERE / script), *arguments]))
    return result


@pytest.fixture
def image_file(tmp_path: Path) -> str:
    file = tmp_path / "image.png"
    file.write_bytes(png(20, 14))
    return str(file)


@needs_node
def test_02_sdk_requests_work(running: Service, image_file: str) -> None:
    output = output_of("client.mjs", running.url, running.key, image_file)
    statuses = {name: output[name]["status"] for name in ("me", "models", "upload", "accepted", "replayed", "job")}
    assert statuses == {"me": 200, "models": 200, "upload": 201, "accepted": 202, "replayed": 202, "job": 200}
    assert output["upload"]["body"]["contentType"] == "image/png"  # though it claimed nothing
    job = output["job"]["body"]
    assert (job["status"], job["progress"], job["creditCost"], job["seed"]) == ("COMPLETED", 100, 3, 7)
    assert output["replayed"]["body"]["jobId"] == output["accepted"]["body"]["jobId"] == job["id"]
    assert [listed["id"] for listed in output["jobs"]["body"]["jobs"]] == [job["id"]]
    assert output["me"]["body"]["team"]["credits"] == 97
    assert output["models"]["body"]["models"][0]["id"] == "clarity-upscale"
    assert all(re.fullmatch(r"[\w.-]{1,128}", output[name]["requestId"]) for name in statuses)
    assert (output["picture"]["status"], output["picture"]["type"]) == (200, "image/png")
    assert Image.open(io.BytesIO(base64.b64decode(output["picture"]["bytes"]))).size == (40, 28)


@needs_node
@pytest.mark.skipif(SDK is None, reason="HIRESFIX_APIFRAME_SDK does not name the published SDK's dist/index.js")
def test_02_published_sdk_works(running: Service, image_file: str) -> None:
    output = output_of("sdk.mjs", str(SDK), running.url, running.key, image_file)
    job = output["job"]
    assert output["accepted"]["jobId"] == output["replayed"]["jobId"] == job["id"]
    assert job["status"] == "COMPLETED"
    assert set(output["seen"]) <= {"QUEUED", "PROCESSING", "COMPLETED"}
    assert output["me"]["team"]["credits"] == 97
    assert output["models"]["models"][0]["id"] == "clarity-upscale"
    assert [listed["id"] for listed in output["jobs"]["jobs"]] == [job["id"]]
    assert Image.open(io.BytesIO(base64.b64decode(output["picture"]))).size == (40, 28)
    refusals = [(error["name"], error["status"], error.get("details")) for error in output["errors"]]
    factor, stranger, query, missing, reused, elsewhere = refusals
    assert factor[:2] == ("ValidationError", 400)
    assert set(factor[2]) == {"clarityUpscaleParams.scale_factor"}
    assert stranger == ("AuthenticationError", 401, None)
    assert query[:2] == ("ValidationError", 400)
    assert set(query[2]) == {"status"}
    assert missing == ("NotFoundError", 404, None)
    assert reused == ("ConflictError", 409, None)
    assert elsewhere == ("ServerError", 501, None)
    assert all(error["hasRequestId"] and error["message"] for error in output["errors"])


@needs_node
@pytest.mark.skipif(
    not (COMPILERS / "tsc").exists(), reason="the compilers are missing; run: npm --prefix tools/js install"
)
def test_14_generated_types_fit_clients(api: Api, tmp_path: Path) -> None:
    (tmp_path / "openapi.json").write_text(httpx.get(f"{api.url}/v2/openapi.json").text)
    run([str(COMPILERS / "openapi-typescript"), str(tmp_path / "openapi.json"), "-o", str(tmp_path / "openapi.d.ts")])
    shutil.copy(HERE / "typed.ts", tmp_path)
    strict = ["--strict", "--exactOptionalPropertyTypes", "--noUncheckedIndexedAccess", "--noEmit"]
    target = ["--target", "es2022", "--module", "nodenext", "--lib", "es2022"]
    # A mistake that the types let pass is an error, too: typed.ts expects each of its own.
    run([str(COMPILERS / "tsc"), *strict, *target, str(tmp_path / "typed.ts")])
