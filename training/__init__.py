"""Train the compact checkpoint: `python -m training.run --data DIR --out DIR --minutes N`."""
