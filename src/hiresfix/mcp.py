"""MCP server: the tools upscale, job_status, cancel_job and list_models for agents, over a hiresfix server.

Guarantees: files are named by path, read and written on this machine, and only inside the given folder if there is one.
An existing file is overwritten only on request. An agent sees no key, no image bytes, and no paths but those it named.
Errors come back as a sentence that says what to do. Needs the extra `mcp`, and a server to talk to.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

import hiresfix
from hiresfix.client import AsyncClient, AsyncJobHandle, Job, JobEnded, Params, inputs
from hiresfix.client.arguments import DEFAULT_MODEL
from hiresfix.errors import HiresfixError
from hiresfix.files import FORMAT_OF_SUFFIX, require_writable
from hiresfix.models.catalog import MODELS
from hiresfix.models.param_help import find_param, help_text
from hiresfix.states import JobState

P = ParamSpec("P")
T = TypeVar("T")

MAX_WAIT_SECONDS = 600.0
DEFAULT_WAIT_SECONDS = 45.0
"""Agents commonly give a tool one minute. After that they would not learn the id of the job they paid for."""
INSTRUCTIONS = (
    "Upscales images and invents plausible detail. `upscale` takes a file path or a URL and writes a file. Big images "
    "can take minutes: if the answer's status is not COMPLETED, call `job_status` with the same job_id and output. "
    "Credits are charged when a job is accepted, and refunded if it fails or is cancelled. `list_models` shows models, "
    "parameters, prices and the credits left."
)
_READS = ToolAnnotations(read_only_hint=True, open_world_hint=True)
_WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=True)

Output = Annotated[
    str,
    Field(description="Path of the file to write, ending in .png, .jpg or .webp. Must not exist unless overwrite."),
]
WaitSeconds = Annotated[
    float, Field(ge=0, le=MAX_WAIT_SECONDS, description="How long to wait for the result before answering.")
]


def _field(name: str) -> Any:
    """Return the field of a parameter, with bounds and help from the catalog."""
    param = find_param(name)
    bounded = not param.choices and not param.absent
    return Field(
        ge=param.minimum if bounded else None, le=param.maximum if bounded else None, description=help_text(param)
    )


DEFAULT_SCALE = int(find_param("scale_factor").default or 0)


class JobStatus(BaseModel):
    """State of a job, for agents."""

    job_id: str
    status: str = Field(description=f"{', '.join(list(JobState)[:-1])} or {list(JobState)[-1]}.")
    progress: int = Field(description="Percent.")
    saved_to: str | None = Field(default=None, description="Path of the file that was written.")
    width: int | None = None
    height: int | None = None
    seed: int | None = Field(default=None, description="Pass it again to make the same image.")
    credit_cost: int | None = None
    queue_position: int | None = None
    eta_seconds: int | None = None
    notes: list[str] = Field(default_factory=list, description="Warnings about this result.")
    next_step: str | None = None


class OfferedModel(BaseModel):
    """A model of the server."""

    id: str
    description: str | None
    credits_from: int | None
    credits_to: int | None
    average_seconds: float | None
    parameters: dict[str, Any] | None = Field(
        description="JSON Schema. Pass parameters that `upscale` has no argument for in extra."
    )


class ModelList(BaseModel):
    """Models of the server, and the credits left."""

    models: list[OfferedModel]
    credits_left: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileAccess:
    """Files that an agent may name: inside `folder`, or anywhere if it is None."""

    folder: Path | None

    def path(self, name: str) -> Path:
        """Resolve a name; relative ones are inside the folder. Raises ToolError for a path outside, links resolved."""
        base = (self.folder or Path.cwd()).resolve()
        path = (base / Path(name).expanduser()).resolve()
        if self.folder is not None and not path.is_relative_to(base):
            raise ToolError(f"{name} is outside the folder this server may use. Use a path relative to that folder.")
        return path

    def target(self, name: str, *, overwrite: bool) -> Path:
        """Resolve the name of a file to write. Raises ToolError if it cannot or must not be written."""
        path = self.path(name)
        if path.suffix.lower() not in FORMAT_OF_SUFFIX:
            raise ToolError(f"Cannot write {name}. Use a name that ends in .png, .jpg or .webp.")
        if path.exists() and not overwrite:
            raise ToolError(f"{name} exists already. Use another name, or overwrite=true.")
        try:
            require_writable(path)
        except OSError as error:
            raise ToolError(f"{name} cannot be written: {error.strerror}. Use another name.") from error
        return path


def build(client: AsyncClient, *, folder: Path | None = None) -> MCPServer[None]:
    """Return an MCP server with the tools, over `client`; files as `FileAccess` allows."""
    server: MCPServer[None] = MCPServer(
        "hiresfix", instructions=INSTRUCTIONS, version=hiresfix.__version__, log_level="WARNING"
    )
    tools = _Tools(client=client, files=FileAccess(folder=folder))
    server.tool(annotations=_WRITES)(tools.upscale)
    server.tool(annotations=_WRITES)(tools.job_status)
    server.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True))(
        tools.cancel_job
    )
    server.tool(annotations=_READS)(tools.list_models)
    return server


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tools:
    """The tools. Agents read the docstrings of the public methods."""

    client: AsyncClient
    files: FileAccess

    async def upscale(
        self,
        ctx: Context[Any, Any],
        image: Annotated[str, Field(description="Path of an image file, or its http(s) URL.")],
        output: Output,
        model: Annotated[str, Field(description=" ".join(f"{model.id}: {model.description}" for model in MODELS))] = (
            DEFAULT_MODEL
        ),
        scale: Annotated[int, _field("scale_factor")] = DEFAULT_SCALE,
        creativity: Annotated[float | None, _field("creativity")] = None,
        resemblance: Annotated[float | None, _field("resemblance")] = None,
        prompt: Annotated[str | None, _field("prompt")] = None,
        seed: Annotated[int | None, _field("seed")] = None,
        extra: Annotated[
            dict[str, Any] | None, Field(description="Further parameters of the model, as in list_models.")
        ] = None,
        wait_seconds: WaitSeconds = DEFAULT_WAIT_SECONDS,
        overwrite: bool = False,
    ) -> JobStatus:
        """Upscale an image and save the result as a file. Costs credits, see list_models.

        Waits up to wait_seconds. If the job is not finished by then, the answer has its job_id: call job_status with it
        and the same output to get the file later.
        """
        target = self.files.target(output, overwrite=overwrite)
        source = image if inputs.url_of(image) else self.files.path(image)
        params: Params = {"scale": scale, "output_format": FORMAT_OF_SUFFIX[target.suffix.lower()]}
        if creativity is not None:
            params["creativity"] = creativity
        if resemblance is not None:
            params["resemblance"] = resemblance
        if prompt is not None:
            params["prompt"] = prompt
        if seed is not None:
            params["seed"] = seed
        job = await _with_tool_errors(self.client.images.upscale)(source, model=model, extra=extra, **params)
        return await self._finish(ctx, job, target, output, wait_seconds)

    async def job_status(
        self,
        ctx: Context[Any, Any],
        job_id: str,
        output: Annotated[str | None, Field(description="Where to save the result when it is finished.")] = None,
        wait_seconds: WaitSeconds = 0,
        overwrite: bool = False,
    ) -> JobStatus:
        """Return the progress of a job; with output, also save the finished image. Prefer waiting to asking often."""
        target = None if output is None else self.files.target(output, overwrite=overwrite)
        job = await _with_tool_errors(self.client.jobs.get)(job_id)
        return await self._finish(ctx, job, target, output, wait_seconds)

    async def cancel_job(self, job_id: str) -> JobStatus:
        """Cancel a job that is not finished. Its credits are refunded."""
        return _status(await _with_tool_errors(self.client.jobs.cancel)(job_id))

    async def list_models(self) -> ModelList:
        """List models with their parameters and prices in credits, and the credits left."""
        models = await _with_tool_errors(self.client.models)("image")
        me = await _with_tool_errors(self.client.me)()
        offered = [
            OfferedModel(
                id=model.id,
                description=model.description,
                credits_from=model.cost_min,
                credits_to=model.cost_max,
                average_seconds=model.avg_seconds,
                parameters=dict(model.params) if model.params else None,
            )
            for model in models
        ]
        return ModelList(models=offered, credits_left=me.credits)

    async def _finish(
        self, ctx: Context[Any, Any], job: AsyncJobHandle, target: Path | None, output: str | None, seconds: float
    ) -> JobStatus:
        """Wait for up to `seconds`, and save a finished result."""

        async def report(state: Job) -> None:
            await ctx.report_progress(state.progress, 100, state.status)

        if seconds and not job.job.is_over:
            try:
                await _with_tool_errors(job.wait)(report, timeout=seconds)
            except _JobEndedError as error:
                return _status(error.job, output)
        if job.status != JobState.COMPLETED or target is None:
            return _status(job.job, output)
        await _with_tool_errors(job.save)(target)
        return _status(job.job, saved_to=str(target))


class _JobEndedError(Exception):
    """A job has no result, or not yet. The tool did not fail: it answers with the job's state."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.id)
        self.job = job


def _with_tool_errors(call: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Return the same call, with expected errors raised as ToolError for the agent."""

    async def wrapper(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return await call(*arguments, **options)
        except JobEnded as error:
            raise _JobEndedError(error.job) from error
        except (HiresfixError, OSError, TypeError, ValueError) as error:
            raise ToolError(str(error)) from error

    return wrapper


def _status(job: Job, output: str | None = None, *, saved_to: str | None = None) -> JobStatus:
    return JobStatus(
        job_id=job.id,
        status=job.status,
        progress=job.progress,
        saved_to=saved_to,
        width=job.width,
        height=job.height,
        seed=job.seed,
        credit_cost=job.credit_cost,
        queue_position=job.queue_position,
        eta_seconds=job.eta_seconds,
        notes=[*((job.metadata or {}).get("warnings") or ()), *([job.error] if job.error else [])],
        next_step=_next_step(job, output, saved_to),
    )


def _next_step(job: Job, output: str | None, saved_to: str | None) -> str | None:
    if not job.is_over:
        output_argument = f", output={output!r}" if output else ""
        return f"Call job_status(job_id={job.id!r}{output_argument}, wait_seconds={DEFAULT_WAIT_SECONDS:g})."
    if job.status == JobState.COMPLETED and saved_to is None:
        return f"Call job_status(job_id={job.id!r}, output=...) to get the file."
    return None


class BearerTokenMiddleware:
    """ASGI middleware: answers 401 unless a request has the header `Authorization: Bearer TOKEN`."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            header = Headers(scope=scope).get("authorization", "").encode()
            if not hmac.compare_digest(header, self._expected):
                body = {"error": "Send the header Authorization: Bearer with the token of HIRESFIX_MCP_TOKEN."}
                response = JSONResponse(body, status_code=401, headers={"WWW-Authenticate": "Bearer"})
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)
