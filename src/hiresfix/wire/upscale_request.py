"""Read a submission: turn bytes into an `UpscaleRequest`, or raise InvalidRequest with all problems at once.

Equal requests are equal afterwards, however they were spelled: aliases, "2" for 2, key order and defaults sent or left
out make no difference to the values or the fingerprint. Nothing here is specific to a model; the catalog is asked.
Knows no headers but the two it is given, and no account.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hiresfix import messages
from hiresfix.errors import InvalidRequest
from hiresfix.models import catalog
from hiresfix.models.catalog import CatalogModel
from hiresfix.models.parameters import Param
from hiresfix.wire.json_body import json_object
from hiresfix.wire.locations import canonical_url, placeholder
from hiresfix.wire.params import Value, canonical, default, spellings
from hiresfix.wire.problems import ROOT, InvalidValue, ProblemCollector, printable

EVENTS = ("progress", "completed", "failed")
DEFAULT_EVENTS = ("completed", "failed")

_WEBHOOK_URL = ("webhookUrl", "webhook_url")
_WEBHOOK_EVENTS = ("webhookEvents", "webhook_events")
_MAX_EVENTS = 20
_MAX_KEYS_NAMED = 10
_MAX_IDEMPOTENCY_KEY = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookTarget:
    """Receiver of a job's events; `events` is never empty and in the order of EVENTS."""

    url: str
    events: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleRequest:
    """A valid submission in canonical form.

    `values` holds every parameter except the image, in the catalog's order, with defaults filled in; a parameter
    without a default that was not sent (a random seed) is absent. `image` is an http(s) URL or a data URI.
    `fingerprint` is the SHA-256 of everything else.
    """

    model: CatalogModel
    values: Mapping[str, Value]
    image: str = field(repr=False)
    webhook: WebhookTarget | None
    fingerprint: bytes = field(repr=False)


def parse_upscale(body: bytes, content_type: str | None, *, ignore_unknown_keys: bool = False) -> UpscaleRequest:
    """Return the submission in a request body; raise InvalidRequest with all problems by JSON path.

    A missing or unknown model is reported together with the other problems, as far as a params object shows which
    model was meant. `ignore_unknown_keys` drops unknown keys instead of refusing them.
    """
    problems = ProblemCollector()
    sent = problems.catch(ROOT, json_object, body, content_type)
    problems.raise_if_any()
    assert sent is not None
    model = _model(sent, problems)
    params = _params_object(sent, model, problems) if model else None
    values = _values(model, params, sent, problems) if model and params is not None else {}
    webhook = _webhook(sent, problems)
    if not ignore_unknown_keys:
        _refuse_unknown(sent, model, params, problems)
    problems.raise_if_any()
    assert model is not None
    image = str(values.pop("image"))
    return UpscaleRequest(
        model=model,
        values=values,
        image=image,
        webhook=webhook,
        fingerprint=_fingerprint(model, values, image, webhook),
    )


def stored_input(request: UpscaleRequest) -> dict[str, Any]:
    """Return the canonical parameters as `Job.input` shows them: no webhook, a data URI only by its size."""
    return {"image": placeholder(request.image), **request.values}


def idempotency_key(header: str | None) -> str | None:
    """Return the opaque key of up to 255 characters; None if missing or empty. Raises InvalidRequest."""
    if header and len(header) > _MAX_IDEMPOTENCY_KEY:
        raise InvalidRequest({"Idempotency-Key": [messages.AT_MOST_CHARACTERS(limit=_MAX_IDEMPOTENCY_KEY)]})
    return header or None


def _first_sent(sent: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Return the value of the first of these keys that is neither null nor ""; None if there is none."""
    return next((sent[name] for name in names if sent.get(name) not in (None, "")), None)


def _params_keys(model: CatalogModel) -> tuple[str, ...]:
    return (model.params_key, *model.params_key_aliases)


def _model(sent: Mapping[str, Any], problems: ProblemCollector) -> CatalogModel | None:
    """Return the named model, else the one whose params object was sent, so that it can be checked as well."""
    name = _first_sent(sent, ("model",))
    named = catalog.find_model(name.strip()) if isinstance(name, str) else None
    if named:
        return named
    offered = " or ".join(f"'{model.id}'" for model in catalog.MODELS)
    problems.add("model", messages.REQUIRED() if name is None else messages.EXPECTED_MODEL(models=offered))
    return next((model for model in catalog.MODELS if _first_sent(sent, _params_keys(model)) is not None), None)


def _params_object(
    sent: Mapping[str, Any], model: CatalogModel, problems: ProblemCollector
) -> Mapping[str, Any] | None:
    params = _first_sent(sent, _params_keys(model))
    if isinstance(params, dict):
        return params
    problems.add(model.params_key, messages.REQUIRED() if params is None else messages.EXPECTED_OBJECT())
    return None


def _values(
    model: CatalogModel, params: Mapping[str, Any], sent: Mapping[str, Any], problems: ProblemCollector
) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for param in model.params:
        path, raw = _raw(param, model, params, sent)
        value = problems.catch(path, _value, param, raw)
        if value is not None:
            values[param.name] = value
    return values


def _value(param: Param, raw: Any) -> Value | None:
    value = canonical(param, raw)
    if value is None and param.required:
        raise InvalidValue(messages.REQUIRED())
    return default(param) if value is None else value


def _raw(param: Param, model: CatalogModel, params: Mapping[str, Any], sent: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the path and the value sent for a parameter; the params object wins over the top level."""
    names = spellings(param)
    raw = _first_sent(params, names)
    if raw is None and param.common and (raw := _first_sent(sent, names)) is not None:
        return param.name, raw
    return f"{model.params_key}.{param.name}", raw


def _webhook(sent: Mapping[str, Any], problems: ProblemCollector) -> WebhookTarget | None:
    """Return the webhook; None without a URL, even if valid events were sent."""
    events = _events(_first_sent(sent, _WEBHOOK_EVENTS), problems)
    raw = _first_sent(sent, _WEBHOOK_URL)
    url = None if raw is None else problems.catch(_WEBHOOK_URL[0], canonical_url, raw)
    return WebhookTarget(url=url, events=events) if url else None


def _events(raw: Any, problems: ProblemCollector) -> tuple[str, ...]:
    if raw is None:
        return DEFAULT_EVENTS
    path = _WEBHOOK_EVENTS[0]
    items = [item for item in raw.split(",") if item.strip()] if isinstance(raw, str) else raw
    if not isinstance(items, list):
        problems.add(path, messages.EXPECTED_ARRAY())
    elif not items:
        problems.add(path, messages.EXPECTED_SOME_CHOICE(choices=", ".join(EVENTS)))
    elif len(items) > _MAX_EVENTS:
        problems.add(path, messages.AT_MOST_ITEMS(limit=_MAX_EVENTS))
    else:
        selected = {problems.catch(f"{path}.{index}", _event, item) for index, item in enumerate(items)}
        return tuple(event for event in EVENTS if event in selected)
    return ()


def _event(item: Any) -> str:
    event = item.strip().lower() if isinstance(item, str) else None
    if event not in EVENTS:
        raise InvalidValue(messages.EXPECTED_CHOICE(choices=", ".join(EVENTS)))
    return event


def _refuse_unknown(
    sent: Mapping[str, Any], model: CatalogModel | None, params: Mapping[str, Any] | None, problems: ProblemCollector
) -> None:
    """Note unknown keys; keys beside an unknown model are ignored, they may belong to that model."""
    if model and params is not None:
        known = {spelling: param.name for param in model.params for spelling in spellings(param)}
        _refuse_keys(params, known, {}, model.params_key, problems)
    if model or "model" not in sent:
        known = _root_keys((model,) if model else catalog.MODELS)
        _refuse_keys(sent, known, _misplaced(model) if model else {}, ROOT, problems)


def _root_keys(models: Iterable[CatalogModel]) -> dict[str, str]:
    """Map every spelling accepted at the top level to its canonical one."""
    known = {"model": "model"}
    known |= {spelling: names[0] for names in (_WEBHOOK_URL, _WEBHOOK_EVENTS) for spelling in names}
    for model in models:
        known |= dict.fromkeys(_params_keys(model), model.params_key)
        known |= {name: param.name for param in model.params if param.common for name in spellings(param)}
    return known


def _misplaced(model: CatalogModel) -> dict[str, str]:
    """Map keys that belong elsewhere to the right path: parameters outside their object, another model's object."""
    inside = {spelling: f"{model.params_key}.{param.name}" for param in model.params for spelling in spellings(param)}
    return inside | {key: model.params_key for other in catalog.MODELS for key in _params_keys(other)}


def _refuse_keys(
    sent: Mapping[str, Any],
    known: Mapping[str, str],
    misplaced: Mapping[str, str],
    path: str,
    problems: ProblemCollector,
) -> None:
    unknown = [key for key in sent if key not in known]
    if not unknown:
        return
    named = unknown[:_MAX_KEYS_NAMED]
    keys = ", ".join(f"'{printable(key)}'" for key in named)
    count = len(unknown) - len(named)
    present = {known[key] for key in sent if key in known}
    meant = [_meant(key, known, misplaced) for key in named]
    hints = ", ".join(dict.fromkeys(f"'{name}'" for name in meant if name and name not in present))
    if count and hints:
        message = messages.UNKNOWN_KEYS_MORE_HINT(keys=keys, count=count, hints=hints)
    elif count:
        message = messages.UNKNOWN_KEYS_MORE(keys=keys, count=count)
    elif hints:
        message = messages.UNKNOWN_KEYS_HINT(keys=keys, hints=hints)
    else:
        message = messages.UNKNOWN_KEYS(keys=keys)
    problems.add(path, message)


def _meant(key: str, known: Mapping[str, str], misplaced: Mapping[str, str]) -> str | None:
    if key in misplaced:
        return misplaced[key]
    spelled = {name.lower(): target for name, target in known.items()}
    close = difflib.get_close_matches(printable(key).lower(), spelled, n=1)
    return spelled[close[0]] if close else None


def _fingerprint(model: CatalogModel, values: Mapping[str, Value], image: str, webhook: WebhookTarget | None) -> bytes:
    request = {
        "model": model.id,
        "params": {**values, "image": hashlib.sha256(image.encode()).hexdigest()},  # it may be megabytes
        "hook": [webhook.url, webhook.events] if webhook else None,
    }
    return hashlib.sha256(json.dumps(request, sort_keys=True, separators=(",", ":")).encode()).digest()
