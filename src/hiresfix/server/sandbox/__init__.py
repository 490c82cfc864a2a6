"""Untrusted images decoded in short-lived processes with limits."""
