"""The process of `onnx-clip`, which is also `python -m onnx_clip_pass`.

Signals are set here and nowhere else: whoever imports the package, or calls `cli.main`, has their
own. The command line is imported inside `run`, since importing it takes a while.
"""

from __future__ import annotations

import io
import signal
import sys
from contextlib import suppress

__all__ = ["run"]

_LIKE_CTRL_C = ("SIGTERM", "SIGHUP")


def run() -> int:
    """Run the command line with the arguments of the process; interrupts leave nothing behind.

    Returns:
        The exit code.
    """
    try:
        for name in _LIKE_CTRL_C:
            number = getattr(signal, name, None)  # not every system has every one
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # not under nohup
                signal.signal(number, signal.default_int_handler)
        if isinstance(sys.stdout, io.TextIOWrapper):  # a name may be beyond what a console writes
            with suppress(OSError):  # which writing will tell
                sys.stdout.reconfigure(errors="backslashreplace")
        from onnx_clip_pass.cli import main

        return main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(run())
