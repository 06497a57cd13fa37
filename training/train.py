"""Trains a diffusion model: `accelerate launch training/train.py --config training/configs/spec.yaml`."""

import sys

from startup import start


def main(args: list[str]) -> None:
    start(args, "train.py")


if __name__ == "__main__":
    main(sys.argv[1:])
