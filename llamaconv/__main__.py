"""``python -m llamaconv``."""

import sys

from llamaconv.cli import main

if __name__ == "__main__":
    sys.exit(main())
