"""Pages on what was done to a model or found in it, for people to look at and keep.

Each page begins with the answer in a line, then numbers, then what is left alone and why, the nodes
that were put in, and a table of all gradients with the rest behind a click.
"""

from onnx_clip_pass.reports.inserted import inserted_in_file
from onnx_clip_pass.reports.inspecting import inspection_page
from onnx_clip_pass.reports.results import page_of, write_html
from onnx_clip_pass.reports.rewriting import rewrite_page
from onnx_clip_pass.reports.verifying import verification_page
from onnx_clip_pass.reports.writing import check_page_target, write_page

__all__ = [
    "check_page_target",
    "inserted_in_file",
    "inspection_page",
    "page_of",
    "rewrite_page",
    "verification_page",
    "write_html",
    "write_page",
]
