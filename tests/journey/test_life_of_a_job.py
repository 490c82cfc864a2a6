"""A whole job over real processes, and every way in which a process can die or stop while it runs."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from hiresfix import webhook_signing
from tests.conftest import Site, png
from tests.journey.conftest import Service
from tests.server.conftest import wait_until

LARGE = (240, 240)
"""Sides of an image that takes several seconds, in several tiles."""


def test_image_is_upscaled_and_announced(service: Service, site: Site) -> None:
    service.api()
    service.worker()
    job_id = service.submit(site.add("/p.png", png(25, 17)), webhookUrl=site.url + "/hook")
    job = service.finished(job_id)
    assert (job["status"], job["progress"], job["creditCost"]) == ("COMPLETED", 100, 1), job
    assert (job["width"], job["height"]) == (50, 34)
    assert job["metadata"]["weights"][0]["name"] == "realesrgan-x4plus-anime"
    (url,) = job["result"]["images"]
    assert url == f"{service.url}/files/images/{job_id}-1.png"
    answer = httpx.get(url)
    assert Image.open(io.BytesIO(answer.content)).size == (50, 34)
    assert answer.headers["content-type"] == "image/png"
    wait_until(lambda: site.received)
    ((headers, body),) = site.received
    assert json.loads(body)["result"] == job["result"]
    assert webhook_signing.verify(body, headers["X-Webhook-Signature"], hashlib.sha256(service.key.encode()).digest())
    wait_until(lambda: service.job(job_id)["webhookStatus"] == "delivered")
    service.assert_books_are_right()


def test_progress_webhooks_stop_at_the_end(service: Service, site: Site) -> None:
    service.api()
    service.worker()
    hook: dict[str, Any] = {"webhookUrl": site.url + "/hook", "webhookEvents": ["progress", "completed"]}
    job_id = service.submit(site.add("/p.png", png(260, 260)), **hook)
    assert service.wait_for(job_id, "COMPLETED", "FAILED", seconds=200)["status"] == "COMPLETED"
    wait_until(lambda: service.job(job_id)["webhookStatus"] == "delivered")
    bodies = [json.loads(body) for _, body in site.received]
    assert [body["event"] for body in bodies] == ["progress"] * (len(bodies) - 1) + ["completed"]
    progress = [body["progress"] for body in bodies]
    assert len(progress) >= 2
    assert progress == sorted(set(progress))
    times = [int(headers["X-Webhook-Timestamp"]) for headers, _ in site.received[:-1]]
    assert all(later - earlier >= 1 for earlier, later in pairwise(times))  # two seconds apart, in whole seconds


def test_allowed_private_addresses_are_logged(service: Service) -> None:
    for process in (service.api(), service.worker()):
        assert "settings.private_addresses_allowed" in service.log_of(process)


def test_clarity_job_metadata_names_its_weights(service: Service, site: Site) -> None:
    service.api()
    service.worker()
    params = {"image": site.add("/p.png", png(24, 24)), "scale_factor": "2", "prompt": "more leaves"}
    response = httpx.post(
        f"{service.url}/v2/images/upscale",
        json={"model": "clarity-upscale", "clarityUpscaleParams": params},
        headers={"X-API-Key": service.key},
    )
    metadata = service.finished(response.json()["jobId"])["metadata"]
    assert metadata["weights"][0]["name"] == metadata["enlarger"]["name"] == "realesrgan-x4plus"  # the image is noise
    assert metadata["input"]["noise"] > 5
    assert any("prompt" in warning for warning in metadata["warnings"])


def test_killed_worker_costs_one_attempt(service: Service, site: Site) -> None:
    service.api()
    victim = service.worker()
    job_id = service.submit(site.add("/p.png", png(*LARGE)))
    service.wait_for(job_id, "PROCESSING")
    time.sleep(0.5)  # well inside the engine
    victim.kill()
    victim.wait()
    assert service.job(job_id)["status"] == "PROCESSING"
    service.worker()
    job = service.finished(job_id)
    assert job["status"] == "COMPLETED"
    assert service.value("select attempt from jobs") == 2
    assert service.value("select count(*) from ledger where kind = 'charge'") == 1
    assert Image.open(io.BytesIO(httpx.get(job["result"]["images"][0]).content)).size == (480, 480)
    service.assert_books_are_right()


def test_job_without_attempts_left_is_refunded(service: Service, site: Site) -> None:
    service.environment["HIRESFIX_MAX_ATTEMPTS"] = "1"
    service.api()
    victim = service.worker()
    job_id = service.submit(site.add("/p.png", png(*LARGE)))
    service.wait_for(job_id, "PROCESSING")
    victim.kill()
    service.worker()
    job = service.finished(job_id)
    assert (job["status"], job["creditCost"], job["progress"]) == ("FAILED", 0, 0)
    assert "credits were returned" in job["error"]
    assert service.value("select credits from teams") == 100
    service.assert_books_are_right()


def test_frozen_worker_that_wakes_late_changes_nothing(service: Service, site: Site) -> None:
    service.api()
    frozen = service.worker()
    job_id = service.submit(site.add("/p.png", png(*LARGE)))
    service.wait_for(job_id, "PROCESSING")
    frozen.send_signal(signal.SIGSTOP)
    service.worker()
    job = service.finished(job_id)
    assert job["status"] == "COMPLETED"
    result = service.value("select result ->> 'key' from jobs")
    frozen.send_signal(signal.SIGCONT)
    wait_until(lambda: "lease_lost" in service.log_of(frozen) or '"lost"' in service.log_of(frozen))
    wait_until(lambda: "job.settled" in service.log_of(frozen))
    assert service.value("select result ->> 'key' from jobs") == result
    assert service.value("select attempt from jobs") == 2
    # The frozen worker works on: either worker may take the next job.
    assert service.finished(service.submit(site.add("/q.png", png(16, 16))))["status"] == "COMPLETED"
    stored = [path.name for path in (service.home / "files" / "results" / job_id).iterdir()]
    assert stored == [Path(result).name]
    service.assert_books_are_right()


def test_sigterm_gives_unfinished_job_back(service: Service, site: Site) -> None:
    service.environment["HIRESFIX_DRAIN_SECONDS"] = "0.2"
    service.api()
    first = service.worker()
    job_id = service.submit(site.add("/p.png", png(*LARGE)))
    service.wait_for(job_id, "PROCESSING")
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    assert service.job(job_id)["status"] == "QUEUED"
    assert service.value("select attempt from jobs") == 0
    service.worker()
    assert service.finished(job_id)["status"] == "COMPLETED"
    assert service.value("select attempt from jobs") == 1


def test_sigterm_lets_short_job_finish(service: Service, site: Site) -> None:
    service.environment["HIRESFIX_DRAIN_SECONDS"] = "60"
    service.api()
    worker = service.worker()
    job_id = service.submit(site.add("/p.png", png(200, 200)))
    service.wait_for(job_id, "PROCESSING")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(90) == 0
    assert service.job(job_id)["status"] == "COMPLETED"


def test_api_killed_before_answering_creates_one_job(service: Service, site: Site) -> None:
    photo = site.add("/p.png", png(20, 20))
    crashing = service.api(program=(str(Path(__file__).with_name("crashing_api.py")),))
    with pytest.raises(httpx.TransportError):
        service.submit(photo, headers={"Idempotency-Key": "once"})
    assert crashing.wait(10) == -signal.SIGKILL
    assert service.value("select count(*) from jobs") == 1
    service.api()
    job_id = service.submit(photo, headers={"Idempotency-Key": "once"})
    assert service.value("select count(*) from jobs where id = %s", job_id) == 1
    assert service.value("select count(*) from jobs") == 1
    assert service.value("select credits from teams") == 99
    service.worker()
    assert service.finished(job_id)["status"] == "COMPLETED"
    service.assert_books_are_right()


def test_missing_source_fails_with_refund(service: Service, site: Site) -> None:
    service.environment["HIRESFIX_MAX_ATTEMPTS"] = "1"
    service.api()
    job_id = service.submit(site.add("/p.png", png(20, 20)))
    (service.home / "files" / "sources" / job_id).unlink()
    service.worker()
    job = service.finished(job_id)
    assert job["status"] == "FAILED"
    assert str(service.home) not in job["error"]
    service.assert_books_are_right()


def test_source_of_finished_job_is_deleted(service: Service, site: Site) -> None:
    service.api()
    worker = service.worker()
    job_id = service.submit(site.add("/p.png", png(20, 20)))
    service.finished(job_id)
    worker.send_signal(signal.SIGTERM)
    worker.wait(30)
    service.worker()  # maintenance runs at its start
    wait_until(lambda: not (service.home / "files" / "sources" / job_id).exists())
    assert httpx.get(service.job(job_id)["result"]["images"][0]).status_code == 200


def test_stopping_api_ends_event_streams(service: Service, site: Site) -> None:
    process = service.api()
    job = service.submit(site.add("/p.png", png(8, 8)))
    with httpx.stream(
        "GET", f"{service.url}/v2/jobs/{job}/events", headers={"X-API-Key": service.key}, timeout=60
    ) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        remaining = list(lines)  # ended properly, not cut off
    assert "event: progress" in remaining
    process.wait(60)
    assert "graceful shutdown exceeded" not in service.log_of(process)
    assert "Traceback" not in service.log_of(process)


def test_cancelled_job_frees_its_worker(service: Service, site: Site) -> None:
    service.environment["HIRESFIX_LEASE_SECONDS"] = "60"  # so the renewal is not what notices the cancellation
    service.api()
    worker = service.worker()
    long = service.submit(site.add("/p.png", png(*LARGE)))
    service.wait_for(long, "PROCESSING")
    short = service.submit(site.add("/q.png", png(16, 16)))
    headers = {"X-API-Key": service.key}
    answer = httpx.post(f"{service.url}/v2/jobs/{long}/cancel", headers=headers, timeout=30)
    assert (answer.status_code, answer.json()["status"], answer.json()["creditCost"]) == (200, "CANCELLED", 0)
    assert service.finished(short)["status"] == "COMPLETED"
    assert service.value("select count(*) from ledger where kind = 'refund'") == 1
    log = service.log_of(worker)
    assert log.index("job.lease_lost") < log.rindex("job.claimed")
    assert not list((service.home / "files" / "results").glob(f"{long}/*"))
    again = httpx.delete(f"{service.url}/v2/jobs/{long}", headers=headers, timeout=30)
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    anonymous = httpx.delete(f"{service.url}/v2/jobs/{short}", timeout=30)
    assert anonymous.status_code == 401
    assert service.value("select credits from teams") == service.value("select sum(amount) from ledger") == 99


def test_worker_is_registered_while_it_runs(service: Service) -> None:
    worker = service.worker()
    wait_until(lambda: service.value("select name from workers where alive_until > now()"))
    assert service.value("select name from workers").endswith(f":{worker.pid}")
    assert service.value("select device from workers") == "cpu"
    worker.terminate()
    assert worker.wait(60) == 0
    assert service.value("select count(*) from workers") == 0
