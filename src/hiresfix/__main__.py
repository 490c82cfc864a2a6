"""`python -m hiresfix` is the command line."""

from hiresfix.cli import main

main()
