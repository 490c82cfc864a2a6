"""Logs: one JSON object per line on standard error; never keys, prompts or the queries of URLs."""

from __future__ import annotations

import logging
import re
import sys

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

_KEY = re.compile(r"(afk_[A-Za-z0-9]{4})[A-Za-z0-9]+")


def _without_keys(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    """Shorten API keys: none is logged on purpose, but a client can put one into a path."""
    return {name: _KEY.sub(r"\1…", value) if isinstance(value, str) else value for name, value in line.items()}


def configure(level: str) -> None:
    """Send our events from `level` up, and those of libraries from WARNING up, to standard error."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendered: list[Processor] = [
        structlog.processors.format_exc_info,
        _without_keys,
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
