"""The worker process, its self-test and periodic maintenance."""
