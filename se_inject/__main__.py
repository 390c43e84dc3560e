"""``python -m se_inject`` is ``se-inject``."""

import sys

from se_inject.cli import main

if __name__ == "__main__":
    sys.exit(main())
