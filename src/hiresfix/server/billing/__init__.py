"""Credits: the ledger and monthly budgets."""
