"""Delays Ctrl-C, SIGTERM and SIGHUP until the trainer has written a checkpoint."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
from accelerate import Accelerator


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM, or SIGHUP because its terminal was closed."""


def get_exit_code(interrupt: KeyboardInterrupt) -> int:
    """Returns the exit code after `interrupt`: 130 for SIGINT, and 143 for SIGTERM and SIGHUP."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


class Interrupts:
    """Context manager that records SIGINT (Ctrl-C), SIGTERM and SIGHUP instead of stopping the process.

    With a single process, a second signal stops the process immediately.

    Args:
        accelerator: The processes that must stop at the same step. All of them must create this object.
    """

    def __init__(self, accelerator: Accelerator):
        self.received, self.immediate = 0, False
        self.group = None
        if accelerator.num_processes > 1:
            # An exchange of CPU tensors does not wait for the GPU.
            self.group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=1))

    def __enter__(self) -> "Interrupts":
        self.received = 0
        numbers = [signal.SIGINT, signal.SIGTERM]
        # `nohup` makes a process ignore SIGHUP.
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self.previous = {number: signal.getsignal(number) for number in numbers}
        for number in self.previous:
            signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if self.group is None:
            for other, handler in self.previous.items():
                # If a terminal is closed, both the shell and the kernel send SIGHUP.
                signal.signal(other, signal.SIG_IGN if number == other == signal.SIGHUP else handler)
            if self.immediate:
                self.stop()

    @contextmanager
    def raise_immediately(self) -> Iterator[None]:
        """With a single process, raises the exception of the signal within the block, which may take minutes."""
        if self.group is None and self.received:
            self.stop()
        self.immediate = True
        try:
            yield
        finally:
            self.immediate = False

    def exchange(self) -> bool:
        """Returns whether any process has received a signal. All processes must call this method at the same step."""
        received = self.find_maximum(self.received)
        if received == 0:
            # A signal that arrives during the exchange is handled at the next step, so all processes stop together.
            return False
        self.received = received
        return True

    def find_maximum(self, value: int) -> int:
        """Returns the maximum `value` of all processes. All processes must call this method at the same step."""
        if self.group is None:
            return value
        maximum = torch.tensor(value)
        torch.distributed.all_reduce(maximum, torch.distributed.ReduceOp.MAX, self.group)
        return int(maximum)

    def stop(self) -> None:
        """Raises the exception of the signal, `KeyboardInterrupt` or [`Terminated`]."""
        raise KeyboardInterrupt if self.received == signal.SIGINT else Terminated
