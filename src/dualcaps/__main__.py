"""`python -m dualcaps`."""

from dualcaps.cli import main

main()
