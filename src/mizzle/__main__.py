"""``python -m mizzle`` is ``mizzle``: for environments whose scripts are not on the path."""

from mizzle.cli import main

if __name__ == "__main__":
    main()
