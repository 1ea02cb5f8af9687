"""`python -m dualcaps`."""

from dualcaps.cli import main

if __name__ == "__main__":
    main()
