"""`python -m woodbury.cli` is `woodbury`."""

from woodbury.cli import main

main()
