"""Pixels in, pixels out: torch, synchronous. Knows no HTTP, no database, no jobs."""
