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
        default=os.environ.get("MODEL_ID", "fast"),
        help="bundled checkpoint, local folder or Hub repository id (default: $MODEL_ID or fast)",
    )
    # By default, SIGTERM ends Python without deleting the temporary files.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    model = parser.parse_args().model
    try:
        launch(build(Handlers(model)))
    # These errors are raised if the model cannot be loaded or generates invalid images, or if no port is free.
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")
