"""`python -m retbench`."""

from retbench.cli.main import main

main()
