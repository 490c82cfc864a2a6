"""Logging, metrics, tracing, health checks, disk space and hardware."""
