"""Measurements, one command each; results, with the machine they were made on, under `results/`."""
