"""Workers as an operator runs them: one per device, self-tested at start, not worn out by one bad job."""

from __future__ import annotations

import time

import psutil
import pytest

from tests.conftest import Site, png
from tests.journey.conftest import Service
from tests.journey.test_life_of_a_job import LARGE
from tests.server.conftest import wait_until


def child_of(service: Service, supervisor: int) -> psutil.Process:
    """Return the one worker process of a supervisor, once it is up."""
    wait_until(lambda: service.value("select count(*) from workers where alive_until > now()"), seconds=120)
    workers = [child for child in psutil.Process(supervisor).children() if "worker" in child.cmdline()]
    (child,) = workers
    return child


def test_job_that_kills_three_workers_is_refunded(service: Service, site: Site) -> None:
    service.api()
    supervisor = service.run("worker", "--devices", "cpu")
    poison = service.submit(site.add("/p.png", png(*LARGE)))
    for attempt in (1, 2, 3):
        wait_until(lambda: service.value("select attempt from jobs where state = 'PROCESSING'") == attempt)  # noqa: B023
        name = service.value("select worker from jobs")
        time.sleep(0.2)  # inside the engine
        psutil.Process(int(name.rpartition(":")[2])).kill()
    job = service.finished(poison)
    assert (job["status"], job["creditCost"]) == ("FAILED", 0)
    assert "interrupted too often" in job["error"]
    assert service.value("select attempt from jobs") == 3
    assert service.value("select credits from teams") == 100
    service.assert_books_are_right()
    # The worker needed no help.
    assert service.finished(service.submit(site.add("/q.png", png(16, 16))))["status"] == "COMPLETED"
    assert supervisor.poll() is None


def test_workers_of_a_machine_drain_together(service: Service, site: Site) -> None:
    service.environment["HIRESFIX_DRAIN_SECONDS"] = "0.2"
    service.api()
    supervisor = service.run("worker", "--devices", "cpu")
    worker = child_of(service, supervisor.pid)
    assert service.value("select device from workers") == "cpu"
    job = service.submit(site.add("/p.png", png(*LARGE)))
    service.wait_for(job, "PROCESSING")
    supervisor.terminate()
    assert supervisor.wait(60) == 0
    assert not worker.is_running()
    assert service.job(job)["status"] == "QUEUED"
    assert service.value("select attempt from jobs") == 0
    assert service.value("select count(*) from workers") == 0


def test_missing_device_is_an_error_at_start(service: Service) -> None:
    process = service.run("worker", "--devices", "97")
    assert process.wait(120) == 1
    assert "There is no GPU 97: this machine has" in service.log_of(process)
    assert "Traceback" not in service.log_of(process)


@pytest.mark.parametrize("preset", ["offline", "clarity"])
def test_worker_passes_self_test_before_taking_jobs(service: Service, site: Site, preset: str) -> None:
    service.api()
    job = service.submit(site.add("/q.png", png(16, 16)))
    service.environment |= {"HIRESFIX_SELF_TEST": "1", "HIRESFIX_CLARITY_PRESET": preset}
    worker = service.run("worker")
    if preset == "offline":
        assert service.finished(job)["status"] == "COMPLETED"
        log = service.log_of(worker)
        assert log.index("worker.self_tested") < log.index("job.claimed")
        return
    assert worker.wait(120) == 1  # its weights are not installed
    log = service.log_of(worker)
    assert "The self test failed, so this worker takes no jobs." in log
    assert "hiresfix models" in log
    assert "Traceback" not in log
    assert service.job(job)["status"] == "QUEUED"
    assert service.value("select count(*) from workers") == 0
