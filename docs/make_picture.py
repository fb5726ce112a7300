"""Make docs/images/rewrite.svg, the picture of README.md: what a command prints, as it prints it.

python docs/make_picture.py            # says whether it shows what is printed now
python docs/make_picture.py --write
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from onnx_clip_pass.cli import main  # noqa: E402

__all__ = ["PICTURE", "picture"]

PICTURE = ROOT / "docs" / "images" / "rewrite.svg"
MODEL = "models/onnx_ad/mlp_sgd.onnx"
SHOWN = "onnx-clip rewrite step.onnx --clip global-norm --clip-norm 1.0 --dry-run"
WIDTH = 80

# rich's own form, but for the font, which it has from another server.
FORM = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
    font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace;
    font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def picture() -> str:
    """Return the picture of what the command prints now."""
    said = io.StringIO()
    environment = {"COLUMNS": str(WIDTH), "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    words = SHOWN.replace("step.onnx", MODEL).split()
    with (
        chdir(ROOT),
        mock.patch.dict(os.environ, environment),
        redirect_stdout(said),
        redirect_stderr(said),
    ):
        os.environ.pop("NO_COLOR", None)
        assert main(words[1:]) == 0, said.getvalue()
    console = Console(record=True, width=WIDTH, file=io.StringIO(), color_system="truecolor")
    console.print(Text(f"$ {SHOWN}", style="bold"))
    text = Text.from_ansi(said.getvalue().replace(MODEL, "step.onnx"))
    console.print(text, soft_wrap=False, overflow="fold")
    return console.export_svg(title="onnx-clip", code_format=FORM, unique_id="onnx-clip")


if __name__ == "__main__":
    made = picture()
    if not PICTURE.exists() or made != PICTURE.read_text(encoding="utf-8"):
        print("docs/images/rewrite.svg shows another output")
        if "--write" in sys.argv:
            PICTURE.write_text(made, encoding="utf-8")
