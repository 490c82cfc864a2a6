"""Budgets: limit what an API key may spend in a calendar month (UTC).

Guarantees: however many requests race, the charges of a month minus their refunds never exceed the budget. A refund
counts in the month of its charge. The ledger is the only source of what was spent, so nothing is counted twice.
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
    """Monthly limit of a key and what it has spent this month, in whole credits."""

    monthly: int
    spent: int

    @property
    def remaining(self) -> int:
        """Credits left this month; 0 too if the budget was lowered below what was spent."""
        return max(0, self.monthly - self.spent)


async def of_key(tx: Tx, key: UUID) -> Budget | None:
    """Return the key's budget and what it has spent this month; None for a key without a budget."""
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


LOCK_BUDGET: LiteralString = (
    "select true from api_keys where id = %(key)s and monthly_budget is not null for no key update"
)
"""Statement that locks the key until the transaction ends, so that no other charges it; no row without a budget."""


async def check(tx: Tx, key: UUID, cost: int) -> None:
    """Raise OverBudget if the charge of `cost` that `tx` made after `LOCK_BUDGET` exceeds what was left this month."""
    # A new statement, so that it sees what the transactions committed that the lock waited for.
    budget = await of_key(tx, key)
    if budget and budget.spent > budget.monthly:
        raise OverBudget(budget=budget.monthly, spent=budget.spent - cost, required=cost)
