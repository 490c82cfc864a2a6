"""Predictor for Cog, whose HTTP server runs one prediction at a time and rejects others with 409."""

from cog import BasePredictor, Input
from fake_engine import upscale


class Predictor(BasePredictor):
    def predict(self, image: str = Input(description="A data URI")) -> str:
        return upscale(image)
