"""Trains a diffusion model: `accelerate launch training/train.py --config training/configs/spec.yaml`."""

import sys


def main(args: list[str]) -> None:
    try:
        # This import takes several seconds. Ctrl-C must not print a traceback during this time either.
        from run import run

        run(args, "train.py")
    except KeyboardInterrupt as error:
        print("train.py: Interrupted before the training started.", file=sys.stderr)
        raise SystemExit(130) from error


if __name__ == "__main__":
    main(sys.argv[1:])
