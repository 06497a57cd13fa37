"""Starts the demo: `python space/app.py [MODEL]`. A Space sets the checkpoint with the variable MODEL_ID."""

import argparse
import os

from handlers import Handlers
from layout import build, launch


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Start the demo in a web browser.")
    parser.add_argument(
        "model",
        nargs="?",
        default=os.environ.get("MODEL_ID", "base"),
        help="bundled checkpoint, local folder or Hub repository id (default: MODEL_ID, else base)",
    )
    launch(build(Handlers(parser.parse_args().model)))
