"""The process of `onnx-clip`, which is also `python -m onnx_clip_pass`.

Signals are set here and nowhere else: whoever imports the package, or calls `cli.main`, has their
own. All that a command needs is imported inside `run`, where an interrupt, a lack of memory or a
broken package ends in a sentence; importing all of it takes a while.
"""

import sys

__all__ = ["run"]

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Those that end the process as Ctrl-C does; not every system has every one."""


def run() -> int:
    """Run the command line with the arguments of the process; interrupts leave nothing behind.

    Returns:
        The exit code.
    """
    try:
        ends = _set_up()
        import gc

        gc.disable()  # all that is imported lives on, and looking for garbage in it takes time
        from onnx_clip_pass.cli import load, main

        load(sys.argv[1:])
        gc.enable()
        _let_interrupt(ends)
        return main()
    except KeyboardInterrupt:
        return _end("interrupted", 130)
    except MemoryError:
        return _end("error: there is not enough memory to start", 3)
    except Exception as error:  # of a package, broken or missing, that the command line imports
        lines = str(error).split("\n")  # numpy says much, and what is wrong at the end
        reason = next((line for line in reversed(lines) if line.strip()), "")
        return _end(f"error: onnx-clip cannot start: {type(error).__name__}: {reason}", 3)


def _set_up() -> list[int]:
    """Let signals end the process, and any name be written; return which signals.

    An exception in the midst of the modules in C++ that are imported next would crash them. There
    is nothing yet to be tidied up, so the process just ends.
    """
    import io
    import os
    import signal
    from contextlib import suppress

    def leave(*_: object) -> None:
        with suppress(OSError):
            os.write(2, b"interrupted\n")
        os._exit(130)

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    ends = []
    for number in numbers:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # no nohup
            signal.signal(number, leave)
            ends.append(number)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name may be beyond what a console writes
        with suppress(OSError):  # which writing will tell
            sys.stdout.reconfigure(errors="backslashreplace")
    return ends


def _let_interrupt(ends: list[int]) -> None:
    """Let these signals raise KeyboardInterrupt from here on, so that files are tidied up."""
    import signal

    for number in ends:
        signal.signal(number, signal.default_int_handler)


def _end(message: str, code: int) -> int:
    """The exit code, with a last word where standard error takes it."""
    from contextlib import suppress

    with suppress(OSError, ValueError, KeyboardInterrupt):  # ValueError: it is closed
        print(message, file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    raise SystemExit(run())
