"""Writing what the server says of itself and of its caller: `GET /v2/models`, `GET /v2/me`, `GET /readyz`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from uuid import UUID

from hiresfix.models.catalog import Model
from hiresfix.models.pricing import Price
from hiresfix.wire.params import json_schema


def model_entry(model: Model, *, price: Price, max_megapixels: float, seconds: float | None) -> dict[str, Any]:
    """A model as `GET /v2/models` lists it.

    price: the operator's; max_megapixels: of the largest result it makes.
    seconds: what its jobs took of late, measured; without it `avgSeconds` is left out, since a client may take
    any number there for a measurement and null for none of its types.
    """
    entry: dict[str, Any] = {
        "id": model.id,
        "label": model.label,
        "modality": "image",
        "description": model.description,
        "pricingMode": price.mode,
        "costMin": price.least,
        "costMax": price.most(max_megapixels),
        "provider": model.provider,
        "endpoint": "POST /v2/images/upscale",
        "paramsKey": model.params_key,
        "params": json_schema(model),
        "presets": [
            {"id": subject.id, "label": subject.label, "description": subject.help, "params": dict(subject.values)}
            for subject in model.subjects
        ],
    }
    return entry if seconds is None else {**entry, "avgSeconds": round(seconds, 1)}


class ProfileView(Protocol):
    """What rendering reads of a caller's profile. `credits` are whole and not negative."""

    @property
    def user_id(self) -> UUID: ...
    @property
    def email(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def team_id(self) -> UUID: ...
    @property
    def team_name(self) -> str: ...
    @property
    def credits(self) -> int: ...
    @property
    def plan(self) -> str: ...
    @property
    def max_concurrent_jobs(self) -> int: ...
    @property
    def key_id(self) -> UUID: ...
    @property
    def key_name(self) -> str: ...
    @property
    def key_prefix(self) -> str: ...


def me(profile: ProfileView) -> dict[str, Any]:
    """The body of `GET /v2/me`: the fields of every published version of it (contract.md D15)."""
    return {
        "user": {"id": str(profile.user_id), "email": profile.email, "role": profile.role},
        "team": {
            "id": str(profile.team_id),
            "name": profile.team_name,
            "credits": profile.credits,
            "plan": profile.plan,
            "customerId": None,
            "maxConcurrentJobs": profile.max_concurrent_jobs,
        },
        "apiKey": {"id": str(profile.key_id), "name": profile.key_name, "prefix": profile.key_prefix},
    }


class FindingView(Protocol):
    """What rendering reads of a readiness check: `problem` is None where all is well."""

    @property
    def problem(self) -> str | None: ...
    @property
    def milliseconds(self) -> int: ...


def readiness(findings: Mapping[str, FindingView], *, can_serve: bool) -> dict[str, Any]:
    """`ok`, `degraded` where something is wrong that the process can serve without, else `unavailable`."""
    well = all(finding.problem is None for finding in findings.values())
    return {
        "status": "ok" if well else "degraded" if can_serve else "unavailable",
        "checks": {
            name: {
                "status": "ok" if finding.problem is None else "failed",
                "problem": finding.problem,
                "milliseconds": finding.milliseconds,
            }
            for name, finding in findings.items()
        },
    }
