"""Jobs from submission to settlement, the scheduler and the worker registry."""
