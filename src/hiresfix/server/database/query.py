"""Run SQL and read rows: first row, all rows, one value, count."""

from __future__ import annotations

from typing import Any, LiteralString, TypeVar

from psycopg.rows import class_row

from hiresfix.server.database.pool import Tx

Row = TypeVar("Row")


async def one(tx: Tx, kind: type[Row], query: LiteralString, **values: object) -> Row | None:
    """Return the first row as `kind`, whose fields are named like the columns; None without a row."""
    async with tx.cursor(row_factory=class_row(kind)) as cursor:
        await cursor.execute(query, values)
        return await cursor.fetchone()


async def every(tx: Tx, kind: type[Row], query: LiteralString, **values: object) -> list[Row]:
    """Return all rows as `kind`."""
    async with tx.cursor(row_factory=class_row(kind)) as cursor:
        await cursor.execute(query, values)
        return await cursor.fetchall()


async def value(tx: Tx, query: LiteralString, **values: object) -> Any:
    """Return the first column of the first row; None without a row."""
    row = await (await tx.execute(query, values)).fetchone()
    return None if row is None else row[0]


async def execute(tx: Tx, query: LiteralString, **values: object) -> int:
    """Run a statement and return the number of rows it touched."""
    return (await tx.execute(query, values)).rowcount
