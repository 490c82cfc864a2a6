"""The offline creative model: what a `clarity-upscale` job does when no diffusion model is there.

Today it is the enlarger followed by back-projection: the network's own detail, nothing invented beyond it. It
says so in its warnings. Knows no files, no tiles and no devices.
"""

from __future__ import annotations

from hiresfix.recipe import Recipe

NAME = "gan-prior (enlarger and back-projection)"


def warnings(recipe: Recipe) -> list[str]:
    """What of the recipe does not act, one sentence each; for the job's metadata, so that nothing is silent."""
    return [
        f"Made by the offline engine, without a diffusion model: no detail beyond what {recipe.enlarger} adds.",
        "creativity, dynamic, num_inference_steps, prompt, negative_prompt and seed do not act with this engine yet.",
    ]
