"""LitServe as in its documentation, with one worker process; the port is the variable PORT."""

import os

import litserve
from fake_engine import upscale


class UpscaleApi(litserve.LitAPI):
    """Process one request at a time, like a GPU."""

    def setup(self, device):
        pass

    def decode_request(self, request):
        return request["image"]

    def predict(self, x):
        return upscale(x)

    def encode_response(self, output):
        return {"output": output}


if __name__ == "__main__":
    server = litserve.LitServer(UpscaleApi(), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning")
