"""Image engine: pixels in, pixels out. Synchronous torch; knows no HTTP, no database and no jobs."""
