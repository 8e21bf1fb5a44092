"""`python -m orchestrator`: the command line where no console script is installed (Ray jobs)."""

from orchestrator.cli import main

main()
