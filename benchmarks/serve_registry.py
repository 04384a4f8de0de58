"""A registry process: ``python -m benchmarks.serve_registry STORE`` runs the service until it is ended."""

from __future__ import annotations

import sys
import threading

from benchmarks.serve import end_with_parent
from registry.cli import main

# All settings, so that those of the user do not matter.
SETTINGS = ["--addr", "127.0.0.1", "--port", "0", "--no-announce", "--log-level", "error", "--log", ""]

if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.exit(main(["serve", *SETTINGS, "--store", sys.argv[1]]))
