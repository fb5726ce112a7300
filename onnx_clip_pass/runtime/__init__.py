"""ONNX Runtime: sessions on a chosen provider, and feeds for a model's inputs."""

from onnx_clip_pass.runtime.feeds import check_run, load_feeds, make_feeds
from onnx_clip_pass.runtime.options import RunOptions
from onnx_clip_pass.runtime.preflight import preflight
from onnx_clip_pass.runtime.session import Arrays, Provider, Session, open_session

__all__ = [
    "Arrays",
    "Provider",
    "RunOptions",
    "Session",
    "check_run",
    "load_feeds",
    "make_feeds",
    "open_session",
    "preflight",
]
