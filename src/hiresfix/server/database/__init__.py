"""PostgreSQL: pool, queries, migrations, notifications, task queue, and the embedded server."""
