"""Routes that read requests and make answers themselves: FastAPI names them, and has nothing to solve or to convert."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import request_response


class Plain(APIRoute):
    """Its endpoint takes the request and, as text, what the path's parameters stand for, and returns the answer."""

    def __init__(self, path: str, endpoint: Callable[..., Awaitable[Response]], **more: Any) -> None:
        super().__init__(path, endpoint, **more)

        async def answer(request: Request) -> Response:
            return await endpoint(request, **request.path_params)

        self.app = request_response(answer)
