"""The API process, killed by its own hand after the commit of a submission and before a byte of the answer.

Run as a script by the journey tests; the product has no such hook.
"""

from __future__ import annotations

import os
import signal
import sys

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hiresfix.server import config
from hiresfix.server.app import create_app


class KillBeforeAnswer:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_or_die(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 202:
                os.kill(os.getpid(), signal.SIGKILL)
            await send(message)

        await self._app(scope, receive, send_or_die)


if __name__ == "__main__":
    settings = config.load()
    assert settings.database_url is not None
    app = KillBeforeAnswer(create_app(settings, database_url=settings.database_url))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[-1]), log_config=None)
