"""`python -m adtr`."""

from adtr.cli import main

main()
