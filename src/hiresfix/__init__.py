"""hiresfix: open, self-hosted creative image upscaling.

    import hiresfix

    hiresfix.upscale("in.jpg", scale=2, creativity=0.35).save("out.png")    # on this machine, without a server

    with hiresfix.Client() as client:                                       # on a server
        client.upscale("in.jpg", "out.png", scale=2, creativity=0.35)

Importing it loads neither torch nor a web framework nor an HTTP library: each name loads what it needs on first use.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hiresfix.recipe import Recipe

if TYPE_CHECKING:
    from hiresfix.client import (
        AsyncClient,
        AsyncJobHandle,
        Client,
        Job,
        JobCancelled,
        JobFailed,
        JobHandle,
        JobTimedOut,
        Result,
        RetryPolicy,
        WebhookEvent,
    )
    from hiresfix.client.webhooks import verify_webhook
    from hiresfix.errors import HiresfixError
    from hiresfix.local import UpscaledImage, upscale

__all__ = [
    "AsyncClient",
    "AsyncJobHandle",
    "Client",
    "HiresfixError",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobHandle",
    "JobTimedOut",
    "Recipe",
    "Result",
    "RetryPolicy",
    "UpscaledImage",
    "WebhookEvent",
    "__version__",
    "upscale",
    "verify_webhook",
]
__version__ = "0.2.0"

_MODULE_OF = {
    "HiresfixError": "hiresfix.errors",
    "UpscaledImage": "hiresfix.local",
    "upscale": "hiresfix.local",
    "verify_webhook": "hiresfix.client.webhooks",
}
_RENAMED = {"Terms": "RetryPolicy", "Upscaled": "UpscaledImage"}
"""Names of release 0.1, which go on working for now."""


if not TYPE_CHECKING:  # type checkers know the names, and must report a wrong one

    def __getattr__(name: str) -> Any:
        if name in _RENAMED:
            warnings.warn(f"{name} is now called {_RENAMED[name]}. Change the name.", DeprecationWarning, stacklevel=2)
            return __getattr__(_RENAMED[name])
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_MODULE_OF.get(name, "hiresfix.client")), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
