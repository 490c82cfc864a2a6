"""hiresfix: open, self-hosted creative image upscaling.

    import hiresfix

    hiresfix.upscale("in.jpg", scale=2, creativity=0.35).save("out.png")    # here, without a server

    with hiresfix.Client() as client:                                       # on a server
        client.upscale("in.jpg", "out.png", scale=2, creativity=0.35)

Importing it loads neither torch nor a web framework nor an HTTP library: each name brings what it needs when it is
first used.
"""

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
        Terms,
        WebhookEvent,
    )
    from hiresfix.client.webhooks import verify_webhook
    from hiresfix.errors import HiresfixError
    from hiresfix.local import Upscaled, upscale

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
    "Terms",
    "Upscaled",
    "WebhookEvent",
    "__version__",
    "upscale",
    "verify_webhook",
]
__version__ = "0.1.0"

_HOME_OF = {
    "HiresfixError": "hiresfix.errors",
    "Upscaled": "hiresfix.local",
    "upscale": "hiresfix.local",
    "verify_webhook": "hiresfix.client.webhooks",
}


if not TYPE_CHECKING:  # who checks types knows the names, and a wrong one is a mistake

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(_HOME_OF.get(name, "hiresfix.client")), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
