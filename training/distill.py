"""Distills a pipeline: `accelerate launch training/distill.py --config training/configs/distill.yaml`."""

import sys


def main(args: list[str]) -> None:
    try:
        # This import takes several seconds. Ctrl-C must not print a traceback during this time either.
        from run import run

        run(args, "distill.py")
    except KeyboardInterrupt as error:
        print("distill.py: Interrupted before the distillation started.", file=sys.stderr)
        raise SystemExit(130) from error


if __name__ == "__main__":
    main(sys.argv[1:])
