"""What an API key may spend in a calendar month (UTC), where its team wants to bound it.

Guarantees: however many requests race, the charges of a month less their refunds never exceed the budget; a refund
gives back to the month of its charge. Nothing is counted twice: what was spent is read from the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString
from uuid import UUID

from hiresfix.errors import OverBudget
from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Whole credits: what may be spent this month, and what was."""

    monthly: int
    spent: int

    @property
    def left(self) -> int:
        """Nothing, too, where the budget was lowered below what was spent."""
        return max(0, self.monthly - self.spent)


async def of_key(tx: Tx, key: UUID) -> Budget | None:
    """The key's budget and what it has spent of it by now; None if it has none."""
    monthly = await query.value(tx, "select monthly_budget from api_keys where id = %(key)s", key=key)
    if monthly is None:
        return None
    spent = await query.value(
        tx,
        "select coalesce(-sum(entry.amount), 0) from jobs join ledger entry on entry.job_id = jobs.id"
        " where jobs.key_id = %(key)s and jobs.created_at >= date_trunc('month', now(), 'UTC')",
        key=key,
    )
    return Budget(monthly=int(monthly), spent=int(spent))


HELD: LiteralString = "select true from api_keys where id = %(key)s and monthly_budget is not null for no key update"
"""Until the transaction ends nobody else decides what the key may spend. Finds a row if the key has a budget."""


async def check(tx: Tx, key: UUID, cost: int) -> None:
    """Raises OverBudget if the charge of `cost` that `tx` has made after `HELD` is more than was left this month."""
    # A statement of its own: it sees what those committed whom the lock made us wait for.
    budget = await of_key(tx, key)
    if budget and budget.spent > budget.monthly:
        raise OverBudget(budget=budget.monthly, spent=budget.spent - cost, required=cost)
