"""Starts the demo: `python space/app.py [MODEL]`. In a Space, the variable MODEL_ID sets the checkpoint."""

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
        help="bundled checkpoint, local folder or Hub repository id (default: $MODEL_ID or base)",
    )
    launch(build(Handlers(parser.parse_args().model)))
