"""Webhooks: events, delivery and signing secrets."""
