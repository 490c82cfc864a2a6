"""Cog's predictor; its HTTP server takes one prediction at a time and refuses others with 409."""

from cog import BasePredictor, Input
from double import enlarge


class Predictor(BasePredictor):
    def predict(self, image: str = Input(description="A data URI")) -> str:
        return enlarge(image)
