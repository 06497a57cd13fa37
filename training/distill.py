"""Distills a pipeline: `accelerate launch training/distill.py --config training/configs/distill.yaml`."""

import sys

from startup import start


def main(args: list[str]) -> None:
    start(args, "distill.py")


if __name__ == "__main__":
    main(sys.argv[1:])
