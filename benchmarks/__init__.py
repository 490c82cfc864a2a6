"""Benchmarks, one command each (README.md lists them); results, with their machine, are under `results/`."""
