"""Run the command line: `python -m hiresfix`."""

from hiresfix.cli import main

main()
