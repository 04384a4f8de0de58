"""``python -m rpc_kit``: the same as ``rpc-kit``."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
