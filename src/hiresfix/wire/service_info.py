"""Write what the server says about itself and its caller: `GET /v2/models`, `GET /v2/me`, `GET /readyz`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from uuid import UUID

from hiresfix.models.catalog import CatalogModel
from hiresfix.models.pricing import Price
from hiresfix.wire.params import json_schema


def model_entry(model: CatalogModel, *, price: Price, max_megapixels: float, seconds: float | None) -> dict[str, Any]:
    """Return a model as `GET /v2/models` lists it.

    Args:
        model: The model of the catalog.
        price: The operator's price.
        max_megapixels: Size of the largest result.
        seconds: Average of recent jobs. Without it `avgSeconds` is left out, because clients take any number for a
            measurement and may not accept null.
    """
    entry: dict[str, Any] = {
        "id": model.id,
        "label": model.label,
        "modality": "image",
        "description": model.description,
        "pricingMode": price.mode,
        "costMin": price.minimum,
        "costMax": price.maximum(max_megapixels),
        "provider": model.provider,
        "endpoint": "POST /v2/images/upscale",
        "paramsKey": model.params_key,
        "params": json_schema(model),
        "presets": [
            {"id": subject.id, "label": subject.label, "description": subject.help, "params": dict(subject.values)}
            for subject in model.param_presets
        ],
    }
    return entry if seconds is None else {**entry, "avgSeconds": round(seconds, 1)}


class ProfileView(Protocol):
    """Fields of a caller's profile that rendering reads. `credits` are whole and not negative."""

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
    """Return the body of `GET /v2/me`, with the fields of every published version of it (contract.md D15)."""
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


class CheckView(Protocol):
    """Fields of a readiness check that rendering reads: `problem` is None if it passed."""

    @property
    def problem(self) -> str | None: ...
    @property
    def milliseconds(self) -> int: ...


def readiness(checks: Mapping[str, CheckView], *, can_serve: bool) -> dict[str, Any]:
    """Return the body of `/readyz`: `degraded` if a check failed that the process can serve without."""
    all_passed = all(check.problem is None for check in checks.values())
    return {
        "status": "ok" if all_passed else "degraded" if can_serve else "unavailable",
        "checks": {
            name: {
                "status": "ok" if check.problem is None else "failed",
                "problem": check.problem,
                "milliseconds": check.milliseconds,
            }
            for name, check in checks.items()
        },
    }
