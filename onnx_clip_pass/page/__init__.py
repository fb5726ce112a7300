"""Pages of HTML that are one file: a frame, tables, drawings and charts, without a network.

What a page says is made elsewhere; here is how it looks, sorts, prints and keeps hostile names
harmless: all text is escaped where it becomes `Markup`, and a Content-Security-Policy lets nothing
run or load but the one script and the one style sheet that the page brings along, by their digests.
"""

from onnx_clip_pass.page.charts import HeatMap, Histogram, Line, LineChart
from onnx_clip_pass.page.drawing import Box, Drawing
from onnx_clip_pass.page.frame import GENERATOR, page
from onnx_clip_pass.page.markup import Markup, element, joined, lines, visible
from onnx_clip_pass.page.parts import State, details, facts, figures, notes, section, verdict
from onnx_clip_pass.page.table import Column, Row, Table, count, number, shape

__all__ = [
    "GENERATOR",
    "Box",
    "Column",
    "Drawing",
    "HeatMap",
    "Histogram",
    "Line",
    "LineChart",
    "Markup",
    "Row",
    "State",
    "Table",
    "count",
    "details",
    "element",
    "facts",
    "figures",
    "joined",
    "lines",
    "notes",
    "number",
    "page",
    "section",
    "shape",
    "verdict",
    "visible",
]
