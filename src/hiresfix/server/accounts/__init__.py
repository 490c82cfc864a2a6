"""Teams, users, API keys, sign-up, login links and the audit log."""
