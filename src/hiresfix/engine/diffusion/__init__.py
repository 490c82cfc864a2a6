"""Hi-res fix by diffusion: the pipeline, its samplers, tiles, prompts, VAE and memory plan."""
