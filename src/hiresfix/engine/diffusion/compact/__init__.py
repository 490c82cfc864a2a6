"""The compact checkpoint format: a small diffusion model without a VAE."""
