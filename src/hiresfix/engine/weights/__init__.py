"""Weight files read safely and turned into networks; LoRA."""
