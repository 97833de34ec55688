"""`python -m onnx_rnn_prune`: the same as the command `onnx-rnn-prune`."""

import gc
import os
import signal
import sys
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Runs the command line and ends the process with its exit code."""
    # Not all extension modules survive an exception during import, so a Ctrl-C ends the process at
    # once; there is nothing to clean up yet.
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, _leave)
    from onnx_rnn_prune.cli import run, terminate

    gc.freeze()  # imported objects are many, and never garbage
    if usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminate)
    if isinstance(sys.stdout, TextIOWrapper):  # its encoding may lack characters of names
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(run())


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(130)


if __name__ == "__main__":
    main()
