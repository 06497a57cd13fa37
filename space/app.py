"""Starts the demo: `python space/app.py [MODEL]`. In a Space, the variable MODEL_ID sets the checkpoint."""

import argparse
import os
import signal
import sys

from handlers import Handlers
from layout import build, launch


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Start the demo as a local web server.")
    parser.add_argument(
        "model",
        nargs="?",
        default=os.environ.get("MODEL_ID", "base"),
        help="bundled checkpoint, local folder or Hub repository id (default: $MODEL_ID or base)",
    )
    # By default, Python ends without deleting the temporary files.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    launch(build(Handlers(parser.parse_args().model)))
