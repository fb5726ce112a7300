"""The command line: words, tables and exit codes. All work is done elsewhere.

Exit codes: 0 done, 1 a check failed, 2 bad usage or bad input, 3 a fault of onnx-clip itself, 130
interrupted, 141 the reader of the output has gone. Results go to standard output, with `--json` one
JSON object and nothing else; progress, warnings and the table of what `rewrite` did go to standard
error.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click

from onnx_clip_pass import __version__
from onnx_clip_pass.cli.commands import COMMANDS, Group
from onnx_clip_pass.cli.words import error_facts, has_colour, let_go_of_streams, print_json, say
from onnx_clip_pass.errors import OnnxClipError

__all__ = ["load", "main"]

_COMPLETION = "_ONNX_CLIP_COMPLETE"
"""The variable by which a shell asks for completion, in the words of click."""


def load(arguments: Sequence[str]) -> None:
    """Import what the command needs that these arguments name; all, where a shell completes."""
    if _COMPLETION in os.environ:
        dict(COMMANDS)
    else:
        name = next((each for each in arguments if not each.startswith("-")), "")
        COMMANDS.get(name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows the program's name; that of the process if None.

    Returns:
        The exit code.
    """
    code, message = _outcome(arguments)
    if message:
        with suppress(OSError):  # the code says it where standard error does not take it
            say(message)
    return code


def _outcome(arguments: Sequence[str] | None) -> tuple[int, str]:
    """The exit code, and what is to be said last; "" if all is said."""
    stdout = sys.stdout
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
    except click.ClickException as error:
        return 2, _usage(error)
    except (click.Abort, KeyboardInterrupt):
        return 130, "interrupted; no file is half written"
    except OnnxClipError as error:
        return 2, f"error: {error}"
    except SystemExit as left:  # click's or rich's: nobody reads on, or completion is done
        is_wrapped = sys.stdout is not stdout  # by click, and only for that
        if isinstance(left.__context__, BrokenPipeError) or is_wrapped:
            return _gone()
        return (2 if left.code else 0), ""
    except MemoryError:
        return 2, "error: there is not enough memory for this"
    except BrokenPipeError:
        return _gone()
    except OSError as error:
        if error.filename is None and isinstance(error, FileNotFoundError):
            return 2, "error: the folder that this was started in is gone; go to another"
        let_go_of_streams()
        if error.filename is None:
            return 2, f"error: cannot write to standard output: {error.strerror}"
        return 2, f"error: cannot read or write {error.filename!r}: {error.strerror}"
    except Exception:
        fault = "error: this is a fault of onnx-clip itself; please report it with these lines"
        return 3, f"{traceback.format_exc()}{fault}"
    return (code if isinstance(code, int) else 0), ""


def _usage(error: click.ClickException) -> str:
    """A message on arguments that are wrong, with the way to help; help if there are none."""
    context = getattr(error, "ctx", None)
    if context is None or isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        return click.unstyle(error.format_message())
    help_ = f"{context.command_path} --help"
    return f"error: {error.format_message()}\n{context.get_usage()}\nall options: {help_}"


def _gone() -> tuple[int, str]:
    """The outcome where the reader of the output has gone, as `head` does: no fault of anyone's.

    It is that of a process which the signal of it ends; 0 would hide a check that has failed.
    """
    let_go_of_streams()
    return 141, ""


def _run(arguments: list[str]) -> Any:
    """Run a command; what goes wrong is told on standard output too where that is to be JSON."""
    try:
        return cli.main(
            args=arguments,
            prog_name="onnx-clip",
            standalone_mode=False,
            color=has_colour(is_result=True),
        )
    except (KeyError, ValueError) as error:
        if _COMPLETION not in os.environ:
            raise
        raise click.UsageError(
            f"{_COMPLETION} is for shells, which set COMP_WORDS and COMP_CWORD as well"
        ) from error
    except (OnnxClipError, click.ClickException) as error:
        if "--json" in arguments:
            try:
                print_json(error_facts(error))
            except BrokenPipeError:  # it is told on standard error all the same
                let_go_of_streams()
        raise


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="onnx-clip")
def cli() -> None:
    """Gradient clipping for ONNX training graphs.

    Finds the gradients of a training graph and puts the clip behind each of them:
    out = x where norm(x) <= clip_norm, else clip_norm * x / norm(x).

    \b
    A first try:
      onnx-clip inspect model.onnx                # which gradients, and how known
      onnx-clip rewrite model.onnx                # writes model.clipped.onnx
      onnx-clip verify model.onnx model.clipped.onnx
      onnx-clip rewrite --help                    # options and examples of each
    """
