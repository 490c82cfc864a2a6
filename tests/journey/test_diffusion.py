"""A diffusion job on real processes, with an operator's preset and model files."""

from __future__ import annotations

import io
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from safetensors.torch import save_file

from hiresfix.models.store import ModelStore
from tests.conftest import Site, png
from tests.engine.diffusion.test_pipeline import text_encoder
from tests.engine.weights.test_checkpoints import controlnet, ldm_controlnet, ldm_vae, prefixed, single_file, vae
from tests.journey.conftest import Service
from tests.server.conftest import wait_until

PRESET = '[house]\nlike = "clarity"\ncheckpoint = "ours"\nvae = "our-vae"\n'
PROMPT = "leaves, " * 249 + "and moss"
"""2000 characters, the longest prompt allowed: six times what the text encoder reads at once."""


@pytest.fixture
def clarity(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service with an operator's preset of their own checkpoint; all its networks are small."""
    monkeypatch.setenv("HIRESFIX_HOME", str(service.home))
    store = ModelStore.at_home()
    text = prefixed("cond_stage_model.transformer.text_model.", text_encoder().state_dict())
    for name, state in {
        "ours": single_file(text=text),
        "our-vae": ldm_vae(vae()),
        "our-control": prefixed("control_model.", ldm_controlnet(controlnet())),
    }.items():
        save_file(state, tmp_path / f"{name}.safetensors")
        store.add(tmp_path / f"{name}.safetensors", name=name, licence="test", commercial=True)
    (service.home / "presets.toml").write_text(PRESET + 'controlnet = "our-control"\n')
    service.environment["HIRESFIX_CLARITY_PRESET"] = "house"
    return service


def submit(service: Service, image: str, **params: Any) -> httpx.Response:
    body = {"model": "clarity-upscale", "clarityUpscaleParams": {"image": image, **params}}
    url = f"{service.url}/v2/images/upscale"
    return httpx.post(url, json=body, headers={"X-API-Key": service.key}, timeout=60)


def test_diffusion_job_returns_image_and_metadata(clarity: Service, site: Site) -> None:
    clarity.api()
    clarity.worker()
    image = site.add("/p.png", png(24, 18))
    rejected = submit(clarity, image, prompt="a" * 10_000)
    assert rejected.status_code == 400
    assert "2000" in rejected.text
    job_id = submit(clarity, image, prompt=PROMPT, num_inference_steps=100, creativity=1, seed=7).json()["jobId"]
    progress: list[int] = []

    def ended() -> bool:
        job = clarity.job(job_id)
        progress.append(job["progress"])
        return job["status"] in ("COMPLETED", "FAILED")

    wait_until(ended, seconds=240)
    job = clarity.job(job_id)
    assert (job["status"], job["width"], job["height"]) == ("COMPLETED", 48, 36), job
    assert progress == sorted(progress)
    assert progress[-1] == 100
    assert Image.open(io.BytesIO(httpx.get(job["result"]["images"][0]).content)).size == (48, 36)
    metadata = job["metadata"]
    assert metadata["engine"] == "clarity"
    names = [weight["name"] for weight in metadata["weights"]]
    assert names == ["realsr-df2k", "ours", "our-vae", "our-control"]
    assert {"drift_db", "ciede2000_mean", "ciede2000_p95", "shift_px", "seam_ratio", "alive"} <= set(
        metadata["quality"]
    )
    clarity.assert_books_are_right()


def test_diffusion_job_is_given_back_on_sigterm(clarity: Service, site: Site) -> None:
    clarity.environment["HIRESFIX_DRAIN_SECONDS"] = "0.2"
    clarity.api()
    worker = clarity.worker()
    job_id = submit(clarity, site.add("/p.png", png(48, 48)), num_inference_steps=100, creativity=1).json()["jobId"]
    wait_until(lambda: 5 < clarity.job(job_id)["progress"] < 90, seconds=240)  # the first upscale is done by then
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert clarity.job(job_id)["status"] == "QUEUED"
    assert clarity.value("select attempt from jobs") == 0
    log = clarity.log_of(worker)
    assert log.index("job.given_back") < log.index("worker.stopped")
    assert '"lost"' in log  # the engine itself ended, not only its process
    clarity.assert_books_are_right()


def test_preset_with_missing_files_is_refunded(clarity: Service, site: Site) -> None:
    clarity.environment["HIRESFIX_MAX_ATTEMPTS"] = "1"
    (clarity.home / "presets.toml").write_text(PRESET)  # without its ControlNet, so the published one is missing
    clarity.api()
    worker = clarity.worker()
    job = clarity.finished(submit(clarity, site.add("/p.png", png(16, 16))).json()["jobId"])
    assert (job["status"], job["creditCost"]) == ("FAILED", 0)
    assert "hiresfix models pull control-tile" in clarity.log_of(worker)
    assert str(clarity.home) not in job["error"]
    clarity.assert_books_are_right()
