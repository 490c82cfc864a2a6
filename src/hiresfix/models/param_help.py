"""Help texts of parameters, made from the catalog: for the command line and the MCP tools."""

from __future__ import annotations

from hiresfix.models.catalog import MODELS
from hiresfix.models.parameters import Param


def find_param(name: str) -> Param:
    """Return the parameter of the first model that has it."""
    return next(param for model in MODELS for param in model.params if param.name == name)


def range_text(param: Param) -> str:
    """Return the choices or the bounds: "1, 2, 4, 8" or "0 to 1"; empty for free text and seeds."""
    if param.choices:
        return ", ".join(map(str, param.choices))
    if param.minimum is None or param.maximum is None or param.absent:
        return ""
    return f"{param.minimum:g} to {param.maximum:g}"


def help_text(param: Param) -> str:
    """Return range, default and help, and the model if not every model has the parameter by default."""
    span = range_text(param)
    limits = f"{span} (default {param.default}). " if span else ""
    owners = [model.id for model in MODELS if any(other.name == param.name for other in model.params)]
    only = "" if MODELS[0].id in owners else f" Only for {', '.join(owners)}."
    return f"{limits}{param.help}{only}"
