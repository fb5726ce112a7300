"""Run onnx-clip from a checkout: `python cli.py rewrite model.onnx`."""

from onnx_clip_pass.__main__ import run

if __name__ == "__main__":
    raise SystemExit(run())
