"""The job service: asyncio and PostgreSQL. Knows no torch outside `worker`."""
