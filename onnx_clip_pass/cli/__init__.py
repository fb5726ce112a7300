"""The command line: words, tables and exit codes. All work is done elsewhere.

Exit codes: 0 done, 1 a check failed, 2 bad usage or bad input. Results go to standard output,
with `--json` one JSON object and nothing else; tables, progress and warnings go to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from onnx_clip_pass import __version__
from onnx_clip_pass.cli.extracting import extract
from onnx_clip_pass.cli.inspecting import inspect
from onnx_clip_pass.cli.rewriting import rewrite, strip
from onnx_clip_pass.cli.showing import say
from onnx_clip_pass.cli.verifying import verify
from onnx_clip_pass.errors import OnnxClipError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows the program's name; that of the process if None.

    Returns:
        The exit code.
    """
    try:
        code = cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except click.Abort:
        say("interrupted; the model that was being written is as it was")
        return 130
    except OnnxClipError as error:
        say(f"error: {error}")
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 2
    return code if isinstance(code, int) else 0


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="onnx-clip")
def cli() -> None:
    """Gradient clipping for ONNX training graphs.

    Finds the gradients of a training graph and puts the clip behind each of them:
    out = x where norm(x) <= clip_norm, else clip_norm * x / norm(x).
    """


for command in (rewrite, inspect, verify, strip, extract):
    cli.add_command(command)
