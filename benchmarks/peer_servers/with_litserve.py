"""LitServe as its own documentation shows it, one worker process: its port is the environment's PORT."""

import os

import litserve
from double import enlarge


class Enlarger(litserve.LitAPI):
    """One request at a time, as a device would."""

    def setup(self, device):
        pass

    def decode_request(self, request):
        return request["image"]

    def predict(self, x):
        return enlarge(x)

    def encode_response(self, output):
        return {"output": output}


if __name__ == "__main__":
    server = litserve.LitServer(Enlarger(), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning")
