"""The process of `onnx-clip`, which is also `python -m onnx_clip_pass`.

Signals are set here and nowhere else: whoever imports the package, or calls `cli.main`, has their
own. Everything is imported inside `run`, where an interrupt, a lack of memory or a broken package
ends in a sentence; importing all of it takes a while.
"""

import sys

__all__ = ["run"]

_LIKE_CTRL_C = ("SIGTERM", "SIGHUP")


def run() -> int:
    """Run the command line with the arguments of the process; interrupts leave nothing behind.

    Returns:
        The exit code.
    """
    try:
        _set_up()
        from onnx_clip_pass.cli import main

        return main()
    except KeyboardInterrupt:
        return _end("interrupted", 130)
    except MemoryError:
        return _end("error: there is not enough memory to start", 3)
    except Exception as error:  # of a package, broken or missing, that the command line imports
        lines = str(error).split("\n")  # numpy says much, and what is wrong at the end
        reason = next((line for line in reversed(lines) if line.strip()), "")
        return _end(f"error: onnx-clip cannot start: {type(error).__name__}: {reason}", 3)


def _set_up() -> None:
    """Let signals end the process as Ctrl-C does, and any name be written."""
    import io
    import signal
    from contextlib import suppress

    for name in _LIKE_CTRL_C:
        number = getattr(signal, name, None)  # not every system has every one
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # not under nohup
            signal.signal(number, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name may be beyond what a console writes
        with suppress(OSError):  # which writing will tell
            sys.stdout.reconfigure(errors="backslashreplace")


def _end(message: str, code: int) -> int:
    """The exit code, with a last word where standard error takes it."""
    from contextlib import suppress

    with suppress(OSError, ValueError, KeyboardInterrupt):  # ValueError: it is closed
        print(message, file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    raise SystemExit(run())
