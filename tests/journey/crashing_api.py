"""An API process that kills itself after the commit of a submission, before it sends the first byte of the answer.

The journey and chaos tests run it as a script; the product has no such hook. If CRASH_FUSE names a path, the process
dies only if a file is there, and deletes it: one file, one crash.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hiresfix.server.app import Server, create_app
from hiresfix.server.platform import logging
from hiresfix.server.settings import load_settings


class CrashBeforeAnswer:
    def __init__(self, app: ASGIApp, *, fuse: Path | None) -> None:
        self._app = app
        self._fuse = fuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_or_crash(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 202 and self._uses_fuse():
                os.kill(os.getpid(), signal.SIGKILL)
            await send(message)

        await self._app(scope, receive, send_or_crash)

    def _uses_fuse(self) -> bool:
        if self._fuse is None:
            return True
        try:
            self._fuse.unlink()
        except FileNotFoundError:
            return False
        return True


if __name__ == "__main__":
    settings = load_settings()
    logging.configure(settings.log_level)
    assert settings.database_url is not None
    fuse = os.environ.get("CRASH_FUSE")
    app = create_app(settings, database_url=settings.database_url)
    app.add_middleware(CrashBeforeAnswer, fuse=Path(fuse) if fuse else None)
    Server(app, host="127.0.0.1", port=int(sys.argv[-1])).run()
