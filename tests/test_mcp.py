"""`hiresfix mcp` as an agent uses it: the protocol's own client, a real process, a real server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp.client import Client as Agent
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from hiresfix.client import AsyncClient
from hiresfix.mcp import build
from tests.client.conftest import Town
from tests.conftest import png
from tests.server.conftest import free_port, wait_until
from tests.test_imports import HIDE
from tests.test_imports import run as run_python

TOKEN = "let-me-in"


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """The folder that agents may use."""
    folder = tmp_path / "desk"
    folder.mkdir()
    (folder / "in.png").write_bytes(png(24, 17))
    return folder


@pytest.fixture
def environment(town: Town) -> dict[str, str]:
    return {"HIRESFIX_URL": town.url, "HIRESFIX_API_KEY": town.key, "PATH": os.environ["PATH"]}


@pytest.fixture
def worker(town: Town) -> Iterator[None]:
    with town.working(model="faithful-upscale"):
        yield


@asynccontextmanager
async def over_stdio(desk: Path, environment: dict[str, str]) -> AsyncIterator[Agent]:
    command = ["-m", "hiresfix", "mcp", "--folder", str(desk)]
    async with Agent(StdioServerParameters(command=sys.executable, args=command, env=environment)) as agent:
        yield agent


@asynccontextmanager
async def agent_of(url: str, key: str, desk: Path) -> AsyncIterator[Agent]:
    """The same tools in this process."""
    async with AsyncClient(url=url, api_key=key) as client, Agent(build(client, folder=desk)) as agent:
        yield agent


@asynccontextmanager
async def over_http(desk: Path, environment: dict[str, str]) -> AsyncIterator[Agent]:
    port = free_port()
    process = subprocess.Popen(  # noqa: ASYNC220  # quick, and nobody else waits here
        [sys.executable, "-m", "hiresfix", "mcp", "--http", "--port", str(port)],
        env={**environment, "HIRESFIX_MCP_TOKEN": TOKEN},
        cwd=desk,
    )

    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/").status_code == 401
        except httpx.TransportError:
            return False

    try:
        wait_until(answers, seconds=150)
        shown = httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
        transport = streamable_http_client(f"http://127.0.0.1:{port}/mcp", http_client=shown)
        async with shown, Agent(transport) as agent:
            yield agent
    finally:
        process.terminate()
        process.wait(30)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def answer(result: Any) -> dict[str, Any]:
    assert not result.is_error, result.content
    found: dict[str, Any] = result.structured_content
    return found


def refusal(result: Any) -> str:
    assert result.is_error
    return str(result.content[0].text)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("way", [over_stdio, over_http], ids=["stdio", "http"])
async def test_an_agent_enlarges_a_picture_follows_and_cancels(
    way: Any, desk: Path, environment: dict[str, str], town: Town
) -> None:
    async with way(desk, environment) as agent:
        tools = {tool.name: tool for tool in (await agent.list_tools()).tools}
        assert set(tools) == {"upscale", "job_status", "cancel_job", "list_models"}
        assert all(len(tool.description or "") > 40 for tool in tools.values())
        offer = answer(await agent.call_tool("list_models"))
        assert {model["id"] for model in offer["models"]} == {"clarity-upscale", "faithful-upscale"}
        assert offer["credits_left"] > 0

        heard: list[tuple[float, float | None, str | None]] = []

        async def hear(progress: float, total: float | None, message: str | None) -> None:
            heard.append((progress, total, message))

        asked = {"image": "in.png", "output": "out/big.png", "model": "faithful-upscale", "scale": 4}
        done = answer(await agent.call_tool("upscale", asked, progress_callback=hear))
        assert heard[-1] == (100.0, 100.0, "COMPLETED")
        assert (done["status"], done["width"], done["next_step"]) == ("COMPLETED", 48, None)
        assert Path(done["saved_to"]) == desk / "out" / "big.png"
        assert (desk / "out" / "big.png").read_bytes() == png(48, 34)
        assert "exists already" in refusal(await agent.call_tool("upscale", asked))

        assert "outside the folder" in refusal(await agent.call_tool("upscale", {**asked, "output": "../big.png"}))

        slow = answer(await agent.call_tool("upscale", {"image": "in.png", "output": "slow.png", "wait_seconds": 0.1}))
        assert slow["status"] == "QUEUED"
        assert f"job_status(job_id='{slow['job_id']}', output='slow.png'" in slow["next_step"]
        await asyncio.to_thread(town.finish, slow["job_id"])
        later = {"job_id": slow["job_id"], "output": "slow.png", "wait_seconds": 30}
        assert answer(await agent.call_tool("job_status", later))["saved_to"] == str(desk / "slow.png")

        more = answer(await agent.call_tool("upscale", {"image": "in.png", "output": "x.png", "wait_seconds": 0}))
        cancelled = answer(await agent.call_tool("cancel_job", {"job_id": more["job_id"]}))
        assert (cancelled["status"], cancelled["credit_cost"]) == ("CANCELLED", 0)
        assert "cannot be cancelled" in refusal(await agent.call_tool("cancel_job", {"job_id": more["job_id"]}))


async def test_what_goes_wrong_is_a_sentence_and_tells_no_secret(desk: Path, town: Town, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(9, 9))
    (desk / "link.png").symlink_to(tmp_path / "secret.png")
    (desk / "new.png").symlink_to(tmp_path / "new.png")
    (desk / "linked").symlink_to(tmp_path)
    before = town.jobs
    async with agent_of(town.url, town.key, desk) as agent:
        for image, output, hint in [
            ("../secret.png", "a.png", "outside the folder"),
            (str(tmp_path / "secret.png"), "a.png", "outside the folder"),
            ("link.png", "a.png", "outside the folder"),
            ("linked/secret.png", "a.png", "outside the folder"),
            ("in.png", "../a.png", "outside the folder"),
            ("in.png", "new.png", "outside the folder"),
            ("in.png", "linked/a.png", "outside the folder"),
            ("in.png", "a.tiff", "ends in .png"),
            ("in.png", "in.png/a.png", "cannot be written: Not a directory"),
            ("missing.png", "a.png", "cannot be read"),
        ]:
            assert hint in refusal(await agent.call_tool("upscale", {"image": image, "output": output}))
        wrong = refusal(await agent.call_tool("upscale", {"image": "in.png", "output": "a.png", "scale": 3}))
        assert "Expected one of 1, 2, 4, 8" in wrong
        assert "Invalid job id" in refusal(await agent.call_tool("job_status", {"job_id": "nonsense"}))
    async with agent_of(town.url, "afk_secret_of_nobody", desk) as agent:
        told = refusal(await agent.call_tool("list_models"))
        assert "Invalid API key" in told
        assert "afk_" not in told
    assert town.jobs == before
    assert names_in(tmp_path) == ["desk", "secret.png"]


async def test_a_job_that_failed_or_expired_is_told_as_what_it_is(town: Town, desk: Path) -> None:
    async with agent_of(town.url, town.key, desk) as agent:
        asked = {"image": "in.png", "output": "x.png", "wait_seconds": 0}
        failed, gone = [answer(await agent.call_tool("upscale", asked))["job_id"] for _ in range(2)]
        town.fail(failed, "It broke. Try another picture.")
        told = answer(await agent.call_tool("job_status", {"job_id": failed, "output": "x.png", "wait_seconds": 5}))
        assert (told["status"], told["saved_to"], told["next_step"]) == ("FAILED", None, None)
        assert told["notes"] == ["It broke. Try another picture."]
        await asyncio.to_thread(town.finish, gone)
        town.do("update jobs set purged_at = now() where id = %s", gone)
        late = await agent.call_tool("job_status", {"job_id": gone, "output": "x.png"})
        assert "Submit the picture again" in refusal(late)
        assert names_in(desk) == ["in.png"]


async def test_with_a_token_only_who_shows_it_is_let_in() -> None:
    from starlette.responses import PlainTextResponse

    from hiresfix.mcp import WithToken

    transport = httpx.ASGITransport(WithToken(PlainTextResponse("in"), TOKEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        assert (await client.get("/")).status_code == 401
        assert (await client.get("/", headers={"Authorization": "Bearer other"})).status_code == 401
        assert (await client.get("/", headers={"Authorization": f"Bearer {TOKEN}"})).text == "in"


def test_other_machines_are_not_served_without_a_token(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "hiresfix", "mcp", "--http", "--host", "0.0.0.0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "HIRESFIX_MCP_TOKEN" in done.stderr


def test_without_the_library_it_says_how_to_get_it() -> None:
    done = run_python(
        HIDE.format(hidden=["mcp"]) + "import os\nos.environ['HIRESFIX_API_KEY'] = 'afk_x'\n"
        "sys.argv[1:] = ['mcp']\nfrom hiresfix.cli import main; main()"
    )
    assert done.returncode == 1
    assert "pip install 'hiresfix[mcp]'" in done.stderr
