"""A server's pictures for agents, over the Model Context Protocol: enlarge, follow, cancel, see what is on offer.

Files are named by path, read and written on this machine and, with a folder given, only inside it; nothing that exists
is overwritten unless asked for. An agent sees no key, no bytes and nothing of the machine but the paths it named. What
goes wrong comes back as a sentence that says what to do. Needs the extra `mcp`, and a server to talk to.
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

P = ParamSpec("P")
T = TypeVar("T")

LONGEST_WAIT = 600.0
DEFAULT_WAIT = 45.0
"""Seconds. Agents commonly give a tool a minute; one that hung up would not learn the id of the job it paid for."""
INSTRUCTIONS = (
    "Enlarges pictures and invents plausible detail. `upscale` takes a file path or a URL and writes a file; large "
    "pictures can take minutes, so if it answers with a status other than COMPLETED, call `job_status` with the same "
    "job_id and output. Credits are charged when a job is accepted and come back if it fails or is cancelled. "
    "`list_models` tells models, parameters, prices and the credits that are left."
)
_READS = ToolAnnotations(read_only_hint=True, open_world_hint=True)
_WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=True)

Output = Annotated[
    str,
    Field(description="Path of the file to write, ending in .png, .jpg or .webp. Must not exist unless overwrite."),
]
WaitSeconds = Annotated[
    float, Field(ge=0, le=LONGEST_WAIT, description="How long to wait for the end before answering with the state.")
]


class JobState(BaseModel):
    """A job as an agent is told of it."""

    job_id: str
    status: str = Field(description="QUEUED, PROCESSING, COMPLETED, FAILED or CANCELLED.")
    progress: int = Field(description="Percent.")
    saved_to: str | None = Field(default=None, description="The file that was written.")
    width: int | None = None
    height: int | None = None
    seed: int | None = Field(default=None, description="Pass it again to make the same picture.")
    credit_cost: int | None = None
    queue_position: int | None = None
    eta_seconds: int | None = None
    notes: list[str] = Field(default_factory=list, description="What to know about this result.")
    next_step: str | None = None


class OfferedModel(BaseModel):
    """A model on offer."""

    id: str
    description: str | None
    credits_from: int | None
    credits_to: int | None
    average_seconds: float | None
    parameters: dict[str, Any] | None = Field(description="JSON Schema; pass what `upscale` has no name for in extra.")


class Offer(BaseModel):
    """What can be had, and for how much."""

    models: list[OfferedModel]
    credits_left: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Which files an agent may name: those in `folder` and below, or any where it is None."""

    folder: Path | None

    def path(self, named: str) -> Path:
        """Relative names are below the folder. Raises ToolError for a path outside, wherever links lead."""
        base = (self.folder or Path.cwd()).resolve()
        path = (base / Path(named).expanduser()).resolve()
        if self.folder is not None and not path.is_relative_to(base):
            raise ToolError(f"{named} is outside the folder this server may use. Use a path relative to that folder.")
        return path

    def target(self, named: str, *, overwrite: bool) -> Path:
        path = self.path(named)
        if path.suffix.lower() not in FORMAT_OF_SUFFIX:
            raise ToolError(f"Cannot write {named}. Use a name that ends in .png, .jpg or .webp.")
        if path.exists() and not overwrite:
            raise ToolError(f"{named} exists already. Use another name, or overwrite=true.")
        try:
            require_writable(path)
        except OSError as error:
            raise ToolError(f"{named} cannot be written: {error.strerror}. Use another name.") from error
        return path


def build(client: AsyncClient, *, folder: Path | None = None) -> MCPServer[None]:
    """The tools, over `client`; files as `Files` allows."""
    server: MCPServer[None] = MCPServer(
        "hiresfix", instructions=INSTRUCTIONS, version=hiresfix.__version__, log_level="WARNING"
    )
    desk = _Desk(client=client, files=Files(folder=folder))
    server.tool(annotations=_WRITES)(desk.upscale)
    server.tool(annotations=_WRITES)(desk.job_status)
    server.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True))(
        desk.cancel_job
    )
    server.tool(annotations=_READS)(desk.list_models)
    return server


@dataclass(frozen=True, slots=True, kw_only=True)
class _Desk:
    """The tools themselves. Their docstrings are what an agent reads."""

    client: AsyncClient
    files: Files

    async def upscale(
        self,
        ctx: Context[Any, Any],
        image: Annotated[str, Field(description="Path of a picture file, or its http(s) URL.")],
        output: Output,
        model: Annotated[str, Field(description="clarity-upscale invents detail, faithful-upscale does not.")] = (
            DEFAULT_MODEL
        ),
        scale: Annotated[int, Field(description="How many times wider and higher: 1, 2, 4 or 8.")] = 2,
        creativity: Annotated[float | None, Field(ge=0, le=1, description="How much detail to invent.")] = None,
        resemblance: Annotated[float | None, Field(ge=0, le=3, description="How tightly to follow the input.")] = None,
        prompt: Annotated[
            str | None, Field(description="What kind of detail to add, where a model follows it.")
        ] = None,
        seed: Annotated[int | None, Field(description="Makes the same picture again.")] = None,
        extra: Annotated[
            dict[str, Any] | None, Field(description="Further parameters of the model, as in list_models.")
        ] = None,
        wait_seconds: WaitSeconds = DEFAULT_WAIT,
        overwrite: bool = False,
    ) -> JobState:
        """Enlarge a picture and save the result as a file. Costs credits, see list_models.

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
        job = await _told(self.client.images.upscale)(source, model=model, extra=extra, **params)
        return await self._finish(ctx, job, target, output, wait_seconds)

    async def job_status(
        self,
        ctx: Context[Any, Any],
        job_id: str,
        output: Annotated[str | None, Field(description="Where to save the result, once it is there.")] = None,
        wait_seconds: WaitSeconds = 0,
        overwrite: bool = False,
    ) -> JobState:
        """How far a job is; with output, also fetches the finished picture. Waiting beats asking often."""
        target = None if output is None else self.files.target(output, overwrite=overwrite)
        job = await _told(self.client.jobs.get)(job_id)
        return await self._finish(ctx, job, target, output, wait_seconds)

    async def cancel_job(self, job_id: str) -> JobState:
        """End a job that is not finished. Its credits come back."""
        return _state(await _told(self.client.jobs.cancel)(job_id))

    async def list_models(self) -> Offer:
        """Models with their parameters and prices in credits, and how many credits are left."""
        models = await _told(self.client.models)("image")
        me = await _told(self.client.me)()
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
        return Offer(models=offered, credits_left=me.credits)

    async def _finish(
        self, ctx: Context[Any, Any], job: AsyncJobHandle, target: Path | None, output: str | None, seconds: float
    ) -> JobState:
        """Wait as long as wanted, and save what is finished."""

        async def report(state: Job) -> None:
            await ctx.report_progress(state.progress, 100, state.status)

        if seconds and not job.job.is_over:
            try:
                await _told(job.wait)(report, timeout=seconds)
            except _JobEndedError as error:
                return _state(error.job, output)
        if job.status != "COMPLETED" or target is None:
            return _state(job.job, output)
        await _told(job.save)(target)
        return _state(job.job, saved=str(target))


class _JobEndedError(Exception):
    """A job that was waited for has no result, or not yet; no failure of the tool."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.id)
        self.job = job


def _told(call: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """The same call, with errors of ours as sentences for the agent."""

    async def telling(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return await call(*arguments, **options)
        except JobEnded as error:
            raise _JobEndedError(error.job) from error
        except (HiresfixError, OSError, TypeError, ValueError) as error:
            raise ToolError(str(error)) from error

    return telling


def _state(job: Job, output: str | None = None, *, saved: str | None = None) -> JobState:
    return JobState(
        job_id=job.id,
        status=job.status,
        progress=job.progress,
        saved_to=saved,
        width=job.width,
        height=job.height,
        seed=job.seed,
        credit_cost=job.credit_cost,
        queue_position=job.queue_position,
        eta_seconds=job.eta_seconds,
        notes=[*((job.metadata or {}).get("warnings") or ()), *([job.error] if job.error else [])],
        next_step=_next(job, output, saved),
    )


def _next(job: Job, output: str | None, saved: str | None) -> str | None:
    if not job.is_over:
        where = f", output={output!r}" if output else ""
        return f"Call job_status(job_id={job.id!r}{where}, wait_seconds={DEFAULT_WAIT:g})."
    if job.status == "COMPLETED" and saved is None:
        return f"Call job_status(job_id={job.id!r}, output=...) to get the file."
    return None


class WithToken:
    """Lets in who shows the token: `Authorization: Bearer TOKEN`."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            shown = Headers(scope=scope).get("authorization", "").encode()
            if not hmac.compare_digest(shown, self._expected):
                refusal = {"error": "Send the header Authorization: Bearer with the token of HIRESFIX_MCP_TOKEN."}
                await JSONResponse(refusal, status_code=401, headers={"WWW-Authenticate": "Bearer"})(
                    scope, receive, send
                )
                return
        await self._app(scope, receive, send)
