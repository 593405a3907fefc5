"""`python -m trainers.diamond`."""

import sys

from trainers.diamond.cli import main

if __name__ == "__main__":
    sys.exit(main())
