"""Starts the trainer. Ctrl-C during the slow imports ends the program without a traceback."""

import os
import signal
import sys
from typing import Literal, NoReturn

from launch_environment import is_main_process, print_and_exit


INTERRUPTED = 130


def start(args: list[str], program: Literal["train.py", "distill.py"]) -> None:
    """Imports the trainer and runs it with the command-line arguments `args`.

    Raises:
        `SystemExit`: If the run fails or is interrupted.
    """
    message = "Interrupted before the training started."

    def exit_now(*_: object) -> NoReturn:
        if is_main_process():
            print(f"{program}: {message}", file=sys.stderr, flush=True)
        # Raising `KeyboardInterrupt` is not sufficient, because some packages turn it into a different error while
        # they are imported.
        os._exit(INTERRUPTED)

    previous = signal.signal(signal.SIGINT, exit_now)
    from processes import destroy_process_groups_after
    from run import run

    signal.signal(signal.SIGINT, previous)

    def run_program() -> None:
        try:
            run(args, program)
        except KeyboardInterrupt:
            print_and_exit(program, message, INTERRUPTED)

    destroy_process_groups_after(run_program)
