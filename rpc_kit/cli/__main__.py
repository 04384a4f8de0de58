"""``python -m rpc_kit.cli``: the same as ``rpc-kit``."""

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
