"""LitServe as its own documentation shows it, one worker process: its port is the environment's PORT."""

from __future__ import annotations

import os
from typing import Any

import litserve
from double import enlarge


class Enlarger(litserve.LitAPI):
    """One request at a time, as a device would."""

    def setup(self, device: str) -> None: ...

    def decode_request(self, request: dict[str, Any]) -> str:
        return str(request["image"])

    def predict(self, x: str) -> str:
        return enlarge(x)

    def encode_response(self, output: str) -> dict[str, str]:
        return {"output": output}


if __name__ == "__main__":
    server = litserve.LitServer(Enlarger(), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning")
