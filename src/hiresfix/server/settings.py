"""The server's settings: environment variables with the prefix `HIRESFIX_`, one typed schema, safe defaults.

Read once at the start of a process and passed on; nothing else in the server reads the environment.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

import structlog
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from hiresfix.errors import ConfigurationError
from hiresfix.models import catalog, presets, pricing
from hiresfix.models.catalog import CatalogModel
from hiresfix.models.pricing import Price
from hiresfix.paths import default_home
from hiresfix.recipe import Recipe
from hiresfix.units import MEBIBYTE

log = structlog.get_logger(__name__)


_TAG = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}")
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:]+\](:\d{1,5})?")


def _items(text: Any) -> Any:
    """Split `a, b` into its parts; return anything but text as it is."""
    return tuple(item for part in text.split(",") if (item := part.strip())) if isinstance(text, str) else text


class Settings(BaseSettings):
    """All settings of API and worker. Times are seconds and sizes bytes unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix="HIRESFIX_", env_ignore_empty=True, extra="ignore", frozen=True)

    home: Path = Field(default_factory=default_home)
    """Data directory: embedded database, files, weights added by the operator."""
    database_url: str | None = None
    """postgresql://... of PostgreSQL >= 14; without it an embedded PostgreSQL under `home` is started."""
    database_timeout_seconds: float = Field(default=10.0, gt=0)
    """How long a request or a worker's step waits for a database connection before it fails with 503."""
    storage_url: str | None = None
    """file://, s3://, gs:// or az:// where images are stored; without it a folder under `home`."""
    storage_public_endpoint: str | None = None
    """Origin at which clients reach the object store, if it differs from the nodes'; for signed URLs."""
    public_url: str = "http://127.0.0.1:8000"
    """Base of every URL handed to clients; the origin only, no path."""
    api_processes: int = Field(default=1, gt=0)
    """Number of API processes that `serve` starts; they share its port and nothing else."""
    allow_private_addresses: bool = False
    """Development: fetch from and deliver to loopback and private networks, also over plain http."""
    outbound_proxy: str | None = None
    """http:// URL of an egress proxy for all fetching and delivering; it then resolves names and guards addresses."""
    outbound_ports: Annotated[tuple[int, ...], NoDecode] = (80, 443)
    """Ports for fetching images and delivering webhooks; any port if private addresses are allowed."""

    max_image_bytes: int = Field(default=25 * MEBIBYTE, gt=0)
    max_input_megapixels: float = Field(default=64.0, gt=0, le=89)
    """At most Pillow's decompression-bomb guard, which stays as a second limit behind this one."""
    max_output_megapixels: float = Field(default=64.0, gt=0)
    max_body_bytes: int = Field(default=36 * MEBIBYTE, gt=0)
    """Hard limit of a request body; enough for a 25 MiB image as a base64 data URI."""
    body_timeout_seconds: float = Field(default=60.0, gt=0)
    """How long a client may take to send a request's body."""
    keep_metadata: bool = True
    """Copy EXIF and XMP into results (the GPS position is always removed); false strips them all."""
    ignore_unknown_keys: bool = False
    """Accept requests with unrecognised keys instead of answering 400."""

    clarity_preset: str = "offline"
    """Preset of `clarity-upscale`: offline, clarity, clarity-classic or one of the operator's presets."""

    prices: Annotated[Mapping[str, Price], NoDecode] = Field(default_factory=dict)
    """By model id, if they differ from the catalog's: `clarity-upscale=5, faithful-upscale=0.25/MP`."""
    required_tags: Annotated[Mapping[str, tuple[str, ...]], NoDecode] = Field(default_factory=dict)
    """By model id, the tags that a worker must have to get its jobs: `clarity-upscale=cuda`."""
    signup: Literal["open", "invite", "closed"] = "closed"
    """Who may create a team by `POST /v2/signup`: anybody, holders of an invite code, or nobody."""
    free_credits: int = Field(default=100, ge=0)
    login_link_minutes: float = Field(default=15.0, ge=0)
    """How long the login link works that `hiresfix serve` prints at its start; 0: print none."""
    max_queued_jobs: int = Field(default=100, gt=0)
    """Queued jobs per team."""
    max_queued_jobs_total: int = Field(default=10_000, gt=0)
    max_attempts: int = Field(default=3, gt=0)
    lease_seconds: float = Field(default=15.0, gt=0)
    maintenance_seconds: float = Field(default=5.0, gt=0)
    """Time between two rounds of maintenance in a worker."""
    stall_seconds: float = Field(default=600.0, gt=0)
    """An engine that reports nothing for this long loses its lease."""
    drain_seconds: float = Field(default=25.0, ge=0)
    """After SIGTERM a worker has this long to finish its job, then returns it to the queue."""
    device: str = "auto"
    """A worker's device, as torch names it: cpu, cuda, cuda:1, mps; "auto" takes the best available."""
    compile: bool = False
    """Compile a worker's diffusion networks with torch.compile, during its self-test."""
    self_test: bool = True
    """A worker upscales a small test image before it takes jobs, and takes none if that fails."""
    worker_tags: Annotated[tuple[str, ...], NoDecode] = ()
    """Tags of this worker that jobs may require (`required_tags`), besides the type of its device."""
    worker_megapixels: float | None = Field(default=None, gt=0)
    """The largest result that this worker accepts; without it, as much as its memory holds."""
    worker_memory_bytes: int | None = Field(default=None, gt=0)
    """Host memory that this worker may use; without it all, or an equal share if several were started together."""
    retention_days: float = Field(default=90.0, gt=0)
    result_urls: Literal["served", "signed"] = "served"
    """served: the API sends results itself. signed: it redirects clients to a signed URL at the object store."""
    result_url_seconds: float = Field(default=3600.0, gt=0, le=7 * 24 * 3600)
    """How long a signed URL works; the URL that redirects to it works as long as the result is kept."""
    input_retention_hours: float = Field(default=0.0, ge=0)
    """Keep a finished job's input this long (for debugging)."""
    upload_retention_hours: float = Field(default=2.0, gt=0)
    """How long an upload is served and can be named in a submission."""
    upload_quota_bytes: int = Field(default=1024 * MEBIBYTE, gt=0)
    """Total size of a user's unexpired uploads."""
    max_wait_seconds: float = Field(default=20.0, ge=0, le=60)
    """Longest time `Prefer: wait=N` makes a submission wait for its job, from the request's arrival."""
    max_event_streams: int = Field(default=20, gt=0)
    """Event streams that one API key may have open in one API process."""
    webhook_log_days: float = Field(default=30.0, gt=0)
    """Keep the attempts of finished deliveries, and progress events, this long."""
    rate_limit_url: str | None = None
    """redis:// or rediss:// for several API nodes to count requests together; without it each counts its own."""
    rate_general: int = Field(default=500, gt=0)
    """Requests a minute by API key. Every request counts in exactly one of these quotas."""
    rate_job_polling: int = Field(default=3000, gt=0)
    """Requests a minute by API key."""
    rate_submissions: int = Field(default=60, gt=0)
    """Requests a minute by API key."""
    rate_uploads: int = Field(default=60, gt=0)
    """Requests a minute by API key."""
    rate_failed_auth: int = Field(default=30, gt=0)
    """Requests a minute by address."""
    rate_signup: int = Field(default=5, gt=0)
    """Requests a minute by address."""
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    """Networks of reverse proxies whose X-Forwarded-For is trusted; from others it is ignored."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins whose pages may call the API from a browser."""
    min_free_bytes: int = Field(default=1024 * MEBIBYTE, ge=0)
    """With less free disk under the store (a folder) or the home, no new images are accepted; 0: no limit."""
    ready_requires: Annotated[tuple[Literal["database", "store", "disk", "worker"], ...], NoDecode] = (
        "database",
        "store",
    )
    """Checks whose failure makes /readyz answer 503; all checks are always reported."""
    metrics_token: str | None = Field(default=None, min_length=16)
    """Bearer token for reading /metrics from anywhere; without it only this machine may."""
    metrics_port: int | None = Field(default=None, gt=0, lt=65536)
    """Port on which each process serves /metrics and /healthz; processes started by `serve` count up from it."""
    metrics_host: str = "127.0.0.1"
    """Address on which `metrics_port` is opened."""
    telemetry_url: str | None = None
    """http(s):// of an OpenTelemetry collector (OTLP over HTTP) for traces; needs the extra `telemetry`."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, url: str | None) -> str | None:
        # Checked here, because the driver's error would print the URL with its password.
        if url is not None and not url.startswith(("postgresql://", "postgres://")):
            raise ValueError("not a PostgreSQL URL; use postgresql://user:password@host/name")
        return url

    @field_validator("storage_public_endpoint")
    @classmethod
    def _is_origin(cls, url: str | None) -> str | None:
        if url is not None and not _ORIGIN.fullmatch(url):
            raise ValueError("not an origin; use https://images.example.com, without a path")
        return url

    @field_validator("result_urls")
    @classmethod
    def _can_be_signed(cls, mode: str, info: ValidationInfo) -> str:
        if mode == "signed" and (info.data.get("storage_url") or "file:").startswith("file:"):
            raise ValueError(
                "a folder has no addresses to sign; set HIRESFIX_STORAGE_URL to an s3://, gs:// or az:// URL"
            )
        return mode

    @field_validator("rate_limit_url")
    @classmethod
    def _is_redis(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("redis://", "rediss://")):
            raise ValueError("not a Redis URL; use redis://:password@host:6379/0")
        return url

    @field_validator("telemetry_url")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError("not a collector's URL; use http://collector:4318")
        return url

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _networks(cls, listed: Any) -> Any:
        if not isinstance(listed, str):
            return listed
        try:
            return tuple(ipaddress.ip_network(item, strict=False) for item in _items(listed))
        except ValueError as error:
            raise ValueError(f"{error}; use addresses and networks: 10.0.0.0/8, 192.0.2.7") from error

    @field_validator("outbound_ports", mode="before")
    @classmethod
    def _ports(cls, listed: Any) -> Any:
        ports = _items(listed)
        if not ports or not all(str(port).isdecimal() and 0 < int(port) < 65536 for port in ports):
            raise ValueError("not a list of ports; use 80,443,8443")
        return tuple(map(int, ports))

    @field_validator("ready_requires", mode="before")
    @classmethod
    def _checks(cls, listed: Any) -> Any:
        return _items(listed)

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, listed: Any) -> Any:
        for origin in (items := _items(listed)):
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is not an origin; use https://studio.example.com, without a path")
        return items

    @field_validator("clarity_preset")
    @classmethod
    def _is_preset(cls, name: str, info: ValidationInfo) -> str:
        if "home" in info.data:
            try:
                presets.find(catalog.CLARITY, name, info.data["home"])
            except ConfigurationError as error:
                raise ValueError(error.message) from error
        return name

    @field_validator("prices", mode="before")
    @classmethod
    def _prices(cls, listed: Any) -> Any:
        if not isinstance(listed, str):
            return listed
        prices = {}
        for item in _items(listed):
            name, _, price = item.partition("=")
            model = catalog.find_model(name.strip())
            if model is None:
                raise ValueError(
                    f"no model is called {name.strip()!r}; use clarity-upscale=3, faithful-upscale=0.25/MP"
                )
            prices[model.id] = pricing.parse(price)
        return prices

    @field_validator("worker_tags", mode="before")
    @classmethod
    def _tags(cls, listed: Any) -> Any:
        for tag in (items := _items(listed)):
            if not _TAG.fullmatch(tag):
                raise ValueError(f"{tag!r} is not a tag; use lower-case letters, digits and _-. as in: a100, site-2")
        return items

    @field_validator("required_tags", mode="before")
    @classmethod
    def _required_tags(cls, listed: Any) -> Any:
        if not isinstance(listed, str):
            return listed
        required: dict[str, tuple[str, ...]] = {}
        for item in _items(listed):
            name, _, tag = map(str.strip, item.partition("="))
            model = catalog.find_model(name)
            if model is None or not _TAG.fullmatch(tag):
                raise ValueError(f"{item!r} is not a model with a tag; use clarity-upscale=cuda, faithful-upscale=cpu")
            required[model.id] = (*required.get(model.id, ()), tag)
        return required

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_any_case(cls, level: str) -> str:
        return level.upper()

    @property
    def storage_location(self) -> str:
        """`storage_url`, or the default folder as a file:// URL."""
        return self.storage_url or (self.home / "files").absolute().as_uri()

    @property
    def retention(self) -> timedelta:
        """Retention time of results, from `retention_days`."""
        return timedelta(days=self.retention_days)

    @property
    def folders(self) -> Mapping[str, Path]:
        """Folders on this machine's disks: the home, and the store if it is a folder."""
        scheme, _, path, *_ = urlsplit(self.storage_location)
        return {"home": self.home} | ({"store": Path(url2pathname(path))} if scheme == "file" else {})

    @property
    def is_local(self) -> bool:
        """True if `public_url` is a loopback address, so that only this machine can be a client."""
        host = urlsplit(self.public_url).hostname or ""
        return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)

    @cached_property
    def clarity(self) -> Recipe:
        """The recipe called `clarity_preset`."""
        return presets.find(catalog.CLARITY, self.clarity_preset, self.home)

    def preset(self, model: CatalogModel) -> Recipe:
        """Return the recipe that a model runs by default."""
        return self.clarity if model is catalog.CLARITY else model.preset

    def price(self, model: CatalogModel) -> Price:
        """Return the price of a model, from `prices` or the catalog."""
        return self.prices.get(model.id, model.price)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


FORMER_VARIABLES: Mapping[str, str] = {
    "HIRESFIX_NEEDS": "HIRESFIX_REQUIRED_TAGS",
    "HIRESFIX_SIGNIN_MINUTES": "HIRESFIX_LOGIN_LINK_MINUTES",
    "HIRESFIX_SWEEP_SECONDS": "HIRESFIX_MAINTENANCE_SECONDS",
    "HIRESFIX_UPLOAD_HOURS": "HIRESFIX_UPLOAD_RETENTION_HOURS",
    "HIRESFIX_BODY_SECONDS": "HIRESFIX_BODY_TIMEOUT_SECONDS",
}
"""Former names of environment variables, which still work, with the current ones."""


def load_settings() -> Settings:
    """Return the settings from the environment. Raises ConfigurationError naming each variable that is wrong.

    Former names of variables still work, with a warning at the start; if both names are set, the current one wins.
    """
    former = _former_values(os.environ)
    values: dict[str, Any] = {name.removeprefix("HIRESFIX_").lower(): value for name, value in former.items()}
    try:
        return Settings(**values)
    except ValidationError as error:
        former_names = {current: name for name, current in FORMER_VARIABLES.items() if current in former}
        variables = [f"HIRESFIX_{str(problem['loc'][0]).upper()}" for problem in error.errors()]
        problems = "; ".join(
            f"{former_names.get(variable, variable)}: {problem['msg']}"
            for variable, problem in zip(variables, error.errors(), strict=True)
        )
        raise ConfigurationError(f"Wrong settings: {problems}. Correct these environment variables.") from error


def _former_values(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the values set under a former name only, by the variables' current names."""
    return {
        current: environment[former]
        for former, current in FORMER_VARIABLES.items()
        if environment.get(former) and not environment.get(current)
    }


def with_current_names(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with former names of variables replaced; a current name wins over its former one."""
    current = {name: value for name, value in environment.items() if name not in FORMER_VARIABLES}
    return current | _former_values(environment)


def warn_of_former_names() -> None:
    """Log one warning if environment variables are set under their former names."""
    renamed = {former: current for former, current in FORMER_VARIABLES.items() if os.environ.get(former)}
    if renamed:
        log.warning(
            "settings.renamed",
            renamed=renamed,
            remedy="Use the new names of these environment variables. The former names will stop working.",
        )


def warn_if_open(settings: Settings) -> None:
    """Log a warning at the start of a process that fetches or delivers while private addresses are allowed."""
    if settings.allow_private_addresses:
        log.warning(
            "settings.private_addresses_allowed",
            danger="Anyone with a key can make this server fetch from and post to your internal network.",
            remedy="Development only: unset HIRESFIX_ALLOW_PRIVATE_ADDRESSES before strangers get a key.",
        )
