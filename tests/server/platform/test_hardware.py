"""What a machine has, with a double of its list of devices only."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiresfix.errors import ConfigurationError
from hiresfix.server import supervisor
from hiresfix.server.platform import hardware
from hiresfix.server.settings import Settings


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(hardware.VISIBLE, raising=False)
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 4)


def visible_gpus(choice: str) -> list[str]:
    return [device.environment[hardware.VISIBLE] for device in hardware.devices(choice)]


def test_each_gpu_gets_its_process(four_gpus: None) -> None:
    assert visible_gpus("auto") == ["0", "1", "2", "3"]
    assert visible_gpus("2, 0") == ["2", "0"]
    assert {device.environment["HIRESFIX_DEVICE"] for device in hardware.devices("auto")} == {"cuda"}


def test_numbers_count_visible_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(hardware.VISIBLE, "GPU-5e0a, 7")
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 2)
    assert visible_gpus("auto") == ["GPU-5e0a", "7"]
    assert visible_gpus("1") == ["7"]


def test_no_gpus_mean_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 0)
    assert [device.name for device in hardware.devices("auto")] == ["auto"]
    assert hardware.devices("cpu") == [hardware.CPU]


@pytest.mark.parametrize("choice", ["4", "0,9", "0,0", "-1", "gpu", "", "1,"])
def test_missing_devices_are_named(four_gpus: None, choice: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--devices auto"):
        hardware.devices(choice)


def test_gpus_are_counted_without_torch_here() -> None:
    assert all(
        device.environment.keys() <= {hardware.VISIBLE, "HIRESFIX_DEVICE"} for device in hardware.devices("auto")
    )


def test_workers_share_host_memory(four_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "host_bytes", lambda: 64 * 2**30)
    started = supervisor.worker_processes(hardware.devices("auto"), Settings())
    assert [child.name for child in started] == ["worker-gpu-0", "worker-gpu-1", "worker-gpu-2", "worker-gpu-3"]
    assert {child.environment["HIRESFIX_WORKER_MEMORY_BYTES"] for child in started} == {str(16 * 2**30)}
    (given,) = supervisor.worker_processes(hardware.devices("0"), Settings(worker_memory_bytes=5))
    assert given.environment["HIRESFIX_WORKER_MEMORY_BYTES"] == "5"


def test_container_limit_bounds_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = hardware.host_bytes()
    limits = tmp_path / "memory.max"
    monkeypatch.setattr(hardware, "CGROUP_LIMITS", (limits,))
    limits.write_text("1000000\n")
    assert hardware.host_bytes() == 1_000_000
    limits.write_text("max\n")
    assert hardware.host_bytes() >= whole
