"""Upscaling by diffusion (hi-res fix): pipeline, samplers, tiles, prompts, VAE and memory plan."""
