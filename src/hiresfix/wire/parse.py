"""Reading a submission: bytes to an `UpscaleRequest`, or InvalidRequest with everything that is wrong at once.

Guarantees that equal requests are equal afterwards, however they were spelled: aliases, "2" for 2, key order
and defaults sent or left out make no difference to the values or the fingerprint. Nothing here is about one
model; the catalog is asked. Knows no headers but the two it is handed, and no account.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hiresfix.errors import InvalidRequest
from hiresfix.models import catalog
from hiresfix.models.catalog import Model, Param
from hiresfix.wire.body import json_object
from hiresfix.wire.locations import canonical_url, placeholder
from hiresfix.wire.params import Value, canonical, default, spellings
from hiresfix.wire.problems import ROOT, Problems, Wrong, shown

EVENTS = ("progress", "completed", "failed")
DEFAULT_EVENTS = ("completed", "failed")

_HOOK_URL = ("webhookUrl", "webhook_url")
_HOOK_EVENTS = ("webhookEvents", "webhook_events")
_MAX_EVENTS = 20
_MAX_KEYS_NAMED = 10
_MAX_IDEMPOTENCY_KEY = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """Where a job's events go; `events` is never empty and in the order of EVENTS."""

    url: str
    events: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleRequest:
    """A valid submission in canonical form.

    `values` holds every parameter but the image, in the catalog's order, defaults filled in; one without a
    default that was not sent (a random seed) is absent. `image` is an http(s) URL or a data URI. `fingerprint`
    is the SHA-256 of all the rest.
    """

    model: Model
    values: Mapping[str, Value]
    image: str = field(repr=False)
    hook: Hook | None
    fingerprint: bytes = field(repr=False)


def parse_upscale(body: bytes, content_type: str | None, *, ignore_unknown_keys: bool = False) -> UpscaleRequest:
    """The submission in a request body; raises InvalidRequest with all problems by JSON path.

    A missing or unknown model is reported together with what else is wrong, as far as a params object shows
    which model was meant. `ignore_unknown_keys` drops keys nobody knows instead of refusing them.
    """
    problems = Problems()
    sent = problems.catch(ROOT, json_object, body, content_type)
    problems.raise_if_any()
    assert sent is not None
    model = _model(sent, problems)
    given = _params_object(sent, model, problems) if model else None
    values = _values(model, given, sent, problems) if model and given is not None else {}
    hook = _hook(sent, problems)
    if not ignore_unknown_keys:
        _refuse_unknown(sent, model, given, problems)
    problems.raise_if_any()
    assert model is not None
    image = str(values.pop("image"))
    return UpscaleRequest(
        model=model, values=values, image=image, hook=hook, fingerprint=_fingerprint(model, values, image, hook)
    )


def stored_input(request: UpscaleRequest) -> dict[str, Any]:
    """The canonical parameters as `Job.input` shows them: no webhook, a data URI only by its size."""
    return {"image": placeholder(request.image), **request.values}


def idempotency_key(header: str | None) -> str | None:
    """The key, opaque, up to 255 characters; None if the header is missing or empty. Raises InvalidRequest."""
    if header and len(header) > _MAX_IDEMPOTENCY_KEY:
        raise InvalidRequest({"Idempotency-Key": [f"Must be at most {_MAX_IDEMPOTENCY_KEY} characters"]})
    return header or None


def _first_sent(sent: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The value of the first of these keys that holds more than null or ""; None if none does."""
    return next((sent[name] for name in names if sent.get(name) not in (None, "")), None)


def _params_keys(model: Model) -> tuple[str, ...]:
    return (model.params_key, *model.params_key_aliases)


def _model(sent: Mapping[str, Any], problems: Problems) -> Model | None:
    """The model named, else the one whose params object is there, so that those can be checked as well."""
    name = _first_sent(sent, ("model",))
    named = catalog.find_model(name.strip()) if isinstance(name, str) else None
    if named:
        return named
    offered = " or ".join(f"'{model.id}'" for model in catalog.MODELS)
    problems.add("model", "Required" if name is None else f"Expected {offered}")
    return next((model for model in catalog.MODELS if _first_sent(sent, _params_keys(model)) is not None), None)


def _params_object(sent: Mapping[str, Any], model: Model, problems: Problems) -> Mapping[str, Any] | None:
    given = _first_sent(sent, _params_keys(model))
    if isinstance(given, dict):
        return given
    problems.add(model.params_key, "Required" if given is None else "Expected an object")
    return None


def _values(model: Model, given: Mapping[str, Any], sent: Mapping[str, Any], problems: Problems) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for param in model.params:
        path, raw = _raw(param, model, given, sent)
        value = problems.catch(path, _value, param, raw)
        if value is not None:
            values[param.name] = value
    return values


def _value(param: Param, raw: Any) -> Value | None:
    value = canonical(param, raw)
    if value is None and param.required:
        raise Wrong("Required")
    return default(param) if value is None else value


def _raw(param: Param, model: Model, given: Mapping[str, Any], sent: Mapping[str, Any]) -> tuple[str, Any]:
    """What was sent for a parameter and the path to complain at; its own object wins over the top level."""
    names = spellings(param)
    raw = _first_sent(given, names)
    if raw is None and param.common and (raw := _first_sent(sent, names)) is not None:
        return param.name, raw
    return f"{model.params_key}.{param.name}", raw


def _hook(sent: Mapping[str, Any], problems: Problems) -> Hook | None:
    """Events are checked even where no URL makes use of them; such a request is accepted and has no hook."""
    events = _events(_first_sent(sent, _HOOK_EVENTS), problems)
    raw = _first_sent(sent, _HOOK_URL)
    url = None if raw is None else problems.catch(_HOOK_URL[0], canonical_url, raw)
    return Hook(url=url, events=events) if url else None


def _events(raw: Any, problems: Problems) -> tuple[str, ...]:
    if raw is None:
        return DEFAULT_EVENTS
    path = _HOOK_EVENTS[0]
    items = [item for item in raw.split(",") if item.strip()] if isinstance(raw, str) else raw
    if not isinstance(items, list):
        problems.add(path, "Expected an array")
    elif not items:
        problems.add(path, f"Expected at least one of {', '.join(EVENTS)}")
    elif len(items) > _MAX_EVENTS:
        problems.add(path, f"Must have at most {_MAX_EVENTS} items")
    else:
        wanted = {problems.catch(f"{path}.{index}", _event, item) for index, item in enumerate(items)}
        return tuple(event for event in EVENTS if event in wanted)
    return ()


def _event(item: Any) -> str:
    event = item.strip().lower() if isinstance(item, str) else None
    if event not in EVENTS:
        raise Wrong(f"Expected one of {', '.join(EVENTS)}")
    return event


def _refuse_unknown(
    sent: Mapping[str, Any], model: Model | None, given: Mapping[str, Any] | None, problems: Problems
) -> None:
    """Keys beside an unknown model are left alone: they may well be that model's."""
    if model and given is not None:
        known = {spelling: param.name for param in model.params for spelling in spellings(param)}
        _refuse_keys(given, known, {}, model.params_key, problems)
    if model or "model" not in sent:
        known = _root_keys((model,) if model else catalog.MODELS)
        _refuse_keys(sent, known, _misplaced(model) if model else {}, ROOT, problems)


def _root_keys(models: Iterable[Model]) -> dict[str, str]:
    """Every spelling accepted at the top level, with its canonical one."""
    known = {"model": "model"}
    known |= {spelling: names[0] for names in (_HOOK_URL, _HOOK_EVENTS) for spelling in names}
    for model in models:
        known |= dict.fromkeys(_params_keys(model), model.params_key)
        known |= {name: param.name for param in model.params if param.common for name in spellings(param)}
    return known


def _misplaced(model: Model) -> dict[str, str]:
    """Keys that make sense elsewhere, with where: parameters outside their object, another model's object."""
    inside = {spelling: f"{model.params_key}.{param.name}" for param in model.params for spelling in spellings(param)}
    return inside | {key: model.params_key for other in catalog.MODELS for key in _params_keys(other)}


def _refuse_keys(
    sent: Mapping[str, Any], known: Mapping[str, str], misplaced: Mapping[str, str], path: str, problems: Problems
) -> None:
    unknown = [key for key in sent if key not in known]
    if not unknown:
        return
    named = unknown[:_MAX_KEYS_NAMED]
    listed = ", ".join(f"'{shown(key)}'" for key in named)
    more = f" and {len(unknown) - len(named)} more" if len(unknown) > len(named) else ""
    present = {known[key] for key in sent if key in known}
    meant = [_meant(key, known, misplaced) for key in named]
    hints = dict.fromkeys(f"'{name}'" for name in meant if name and name not in present)
    question = f" Did you mean {', '.join(hints)}?" if hints else ""
    problems.add(path, f"Unrecognized key(s): {listed}{more}.{question}")


def _meant(key: str, known: Mapping[str, str], misplaced: Mapping[str, str]) -> str | None:
    if key in misplaced:
        return misplaced[key]
    spelled = {name.lower(): target for name, target in known.items()}
    close = difflib.get_close_matches(shown(key).lower(), spelled, n=1)
    return spelled[close[0]] if close else None


def _fingerprint(model: Model, values: Mapping[str, Value], image: str, hook: Hook | None) -> bytes:
    request = {
        "model": model.id,
        "params": {**values, "image": hashlib.sha256(image.encode()).hexdigest()},  # it may be megabytes
        "hook": [hook.url, hook.events] if hook else None,
    }
    return hashlib.sha256(json.dumps(request, sort_keys=True, separators=(",", ":")).encode()).digest()
