"""Both clients wait for their jobs while the API is killed and restarted."""

from __future__ import annotations

import asyncio
import io
import threading
from pathlib import Path

from PIL import Image

from hiresfix.client import AsyncClient, Client, Job
from tests.conftest import png
from tests.journey.conftest import Service
from tests.server.conftest import wait_until


def test_waiting_clients_survive_api_restarts(service: Service, tmp_path: Path) -> None:
    api = service.api()
    seen: dict[str, list[Job]] = {"blocking": [], "awaited": []}

    def blocking() -> None:
        with Client(url=service.url, api_key=service.key) as client:
            job = client.images.upscale(png(20, 14), model="faithful-upscale", content="anime")
            job.save(tmp_path / "blocking.png", seen["blocking"].append, timeout=200)

    async def awaited() -> None:
        async with AsyncClient(url=service.url, api_key=service.key) as client:
            job = await client.images.upscale(png(20, 14), model="faithful-upscale", content="anime")
            await job.save(tmp_path / "awaited.png", seen["awaited"].append, timeout=200)

    threads = [threading.Thread(target=blocking), threading.Thread(target=asyncio.run, args=(awaited(),))]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(seen.values()))
    for _ in range(2):
        api.kill()
        api.wait()
        api = service.api()
    service.worker()
    for thread in threads:
        thread.join(220)
    for name, states in seen.items():
        assert (states[0].status, states[-1].status) == ("QUEUED", "COMPLETED"), name
        image = (tmp_path / f"{name}.png").read_bytes()
        assert Image.open(io.BytesIO(image)).size == (40, 28)
    assert service.value("select count(*) from jobs") == 2
    assert service.value("select credits from teams") == 98
