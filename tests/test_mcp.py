"""`hiresfix mcp` with a real MCP client, a real process and a real server."""

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
from hiresfix.client.values import FULL_NAMES
from hiresfix.mcp import build
from hiresfix.models.catalog import CLARITY
from hiresfix.models.param_help import find_param, help_text
from tests.conftest import png
from tests.live_server import LiveServer
from tests.server.conftest import free_port, wait_until
from tests.test_imports import HIDE
from tests.test_imports import run as run_python

TOKEN = "let-me-in"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that agents may use."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "in.png").write_bytes(png(24, 17))
    return folder


@pytest.fixture
def environment(live_server: LiveServer) -> dict[str, str]:
    return {"HIRESFIX_URL": live_server.url, "HIRESFIX_API_KEY": live_server.key, "PATH": os.environ["PATH"]}


@pytest.fixture
def worker(live_server: LiveServer) -> Iterator[None]:
    with live_server.working(model="faithful-upscale"):
        yield


@asynccontextmanager
async def over_stdio(folder: Path, environment: dict[str, str]) -> AsyncIterator[Agent]:
    command = ["-m", "hiresfix", "mcp", "--folder", str(folder)]
    async with Agent(StdioServerParameters(command=sys.executable, args=command, env=environment)) as agent:
        yield agent


@asynccontextmanager
async def agent_of(url: str, key: str, folder: Path) -> AsyncIterator[Agent]:
    """Run the same tools in this process."""
    async with AsyncClient(url=url, api_key=key) as client, Agent(build(client, folder=folder)) as agent:
        yield agent


@asynccontextmanager
async def over_http(folder: Path, environment: dict[str, str]) -> AsyncIterator[Agent]:
    port = free_port()
    process = subprocess.Popen(  # noqa: ASYNC220  # returns at once
        [sys.executable, "-m", "hiresfix", "mcp", "--http", "--port", str(port)],
        env={**environment, "HIRESFIX_MCP_TOKEN": TOKEN},
        cwd=folder,
    )

    def is_up() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/").status_code == 401
        except httpx.TransportError:
            return False

    try:
        wait_until(is_up, seconds=150)
        http_client = httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
        transport = streamable_http_client(f"http://127.0.0.1:{port}/mcp", http_client=http_client)
        async with http_client, Agent(transport) as agent:
            yield agent
    finally:
        process.terminate()
        process.wait(30)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def answer(result: Any) -> dict[str, Any]:
    assert not result.is_error, result.content
    content: dict[str, Any] = result.structured_content
    return content


def refusal(result: Any) -> str:
    assert result.is_error
    return str(result.content[0].text)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("way", [over_stdio, over_http], ids=["stdio", "http"])
async def test_agent_upscales_waits_and_cancels(
    way: Any, folder: Path, environment: dict[str, str], live_server: LiveServer
) -> None:
    async with way(folder, environment) as agent:
        tools = {tool.name: tool for tool in (await agent.list_tools()).tools}
        assert set(tools) == {"upscale", "job_status", "cancel_job", "list_models"}
        assert all(len(tool.description or "") > 40 for tool in tools.values())
        offer = answer(await agent.call_tool("list_models"))
        assert {model["id"] for model in offer["models"]} == {"clarity-upscale", "faithful-upscale"}
        assert offer["credits_left"] > 0

        reports: list[tuple[float, float | None, str | None]] = []

        async def report(progress: float, total: float | None, message: str | None) -> None:
            reports.append((progress, total, message))

        arguments = {"image": "in.png", "output": "out/big.png", "model": "faithful-upscale", "scale": 4}
        done = answer(await agent.call_tool("upscale", arguments, progress_callback=report))
        assert reports[-1] == (100.0, 100.0, "COMPLETED")
        assert (done["status"], done["width"], done["next_step"]) == ("COMPLETED", 48, None)
        assert Path(done["saved_to"]) == folder / "out" / "big.png"
        assert (folder / "out" / "big.png").read_bytes() == png(48, 34)
        assert "exists already" in refusal(await agent.call_tool("upscale", arguments))

        assert "outside the folder" in refusal(await agent.call_tool("upscale", {**arguments, "output": "../big.png"}))

        slow = answer(await agent.call_tool("upscale", {"image": "in.png", "output": "slow.png", "wait_seconds": 0.1}))
        assert slow["status"] == "QUEUED"
        assert f"job_status(job_id='{slow['job_id']}', output='slow.png'" in slow["next_step"]
        await asyncio.to_thread(live_server.finish, slow["job_id"])
        later = {"job_id": slow["job_id"], "output": "slow.png", "wait_seconds": 30}
        assert answer(await agent.call_tool("job_status", later))["saved_to"] == str(folder / "slow.png")

        other = answer(await agent.call_tool("upscale", {"image": "in.png", "output": "x.png", "wait_seconds": 0}))
        cancelled = answer(await agent.call_tool("cancel_job", {"job_id": other["job_id"]}))
        assert (cancelled["status"], cancelled["credit_cost"]) == ("CANCELLED", 0)
        assert "cannot be cancelled" in refusal(await agent.call_tool("cancel_job", {"job_id": other["job_id"]}))


async def test_errors_are_sentences_without_secrets(folder: Path, live_server: LiveServer, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(9, 9))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "new.png").symlink_to(tmp_path / "new.png")
    (folder / "linked").symlink_to(tmp_path)
    before = live_server.jobs
    async with agent_of(live_server.url, live_server.key, folder) as agent:
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
    async with agent_of(live_server.url, "afk_secret_of_nobody", folder) as agent:
        message = refusal(await agent.call_tool("list_models"))
        assert "Invalid API key" in message
        assert "afk_" not in message
    assert live_server.jobs == before
    assert names_in(tmp_path) == ["folder", "secret.png"]


async def test_failed_and_expired_jobs_are_reported(live_server: LiveServer, folder: Path) -> None:
    async with agent_of(live_server.url, live_server.key, folder) as agent:
        arguments = {"image": "in.png", "output": "x.png", "wait_seconds": 0}
        failed, expired = [answer(await agent.call_tool("upscale", arguments))["job_id"] for _ in range(2)]
        live_server.fail(failed, "It broke. Try another image.")
        status = answer(await agent.call_tool("job_status", {"job_id": failed, "output": "x.png", "wait_seconds": 5}))
        assert (status["status"], status["saved_to"], status["next_step"]) == ("FAILED", None, None)
        assert status["notes"] == ["It broke. Try another image."]
        await asyncio.to_thread(live_server.finish, expired)
        live_server.do("update jobs set purged_at = now() where id = %s", expired)
        late = await agent.call_tool("job_status", {"job_id": expired, "output": "x.png"})
        assert "Submit the image again" in refusal(late)
        assert names_in(folder) == ["in.png"]


async def test_token_is_required() -> None:
    from starlette.responses import PlainTextResponse

    from hiresfix.mcp import BearerTokenMiddleware

    transport = httpx.ASGITransport(BearerTokenMiddleware(PlainTextResponse("in"), TOKEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        assert (await client.get("/")).status_code == 401
        assert (await client.get("/", headers={"Authorization": "Bearer other"})).status_code == 401
        assert (await client.get("/", headers={"Authorization": f"Bearer {TOKEN}"})).text == "in"


def test_public_address_requires_token(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "hiresfix", "mcp", "--http", "--host", "0.0.0.0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "HIRESFIX_MCP_TOKEN" in done.stderr


def test_missing_mcp_extra_explains_installation() -> None:
    done = run_python(
        HIDE.format(hidden=["mcp"]) + "import os\nos.environ['HIRESFIX_API_KEY'] = 'afk_x'\n"
        "sys.argv[1:] = ['mcp']\nfrom hiresfix.cli import main; main()"
    )
    assert done.returncode == 1
    assert "pip install 'hiresfix[mcp]'" in done.stderr


async def test_tool_parameters_come_from_catalog() -> None:
    async with AsyncClient(api_key="afk_x") as client, Agent(build(client)) as agent:
        tools = {tool.name: tool for tool in (await agent.list_tools()).tools}
    fields = tools["upscale"].input_schema["properties"]
    full_names = {full: short for short, full in FULL_NAMES.items()}
    params = [param for param in CLARITY.params if full_names.get(param.name, param.name) in fields]
    assert {param.name for param in params} >= {"scale_factor", "creativity", "resemblance", "prompt", "seed"}
    for param in params:
        if param.name == "image":  # a path, which the API does not have
            continue
        field = fields[full_names.get(param.name, param.name)]
        schema = next((kind for kind in field.get("anyOf", ()) if kind["type"] != "null"), field)
        assert field["description"] == help_text(param)
        if not param.choices and not param.absent:
            assert (schema.get("minimum"), schema.get("maximum")) == (param.minimum, param.maximum)
    assert fields["scale"]["default"] == find_param("scale_factor").default
