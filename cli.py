"""Run onnx-clip from a checkout: `python cli.py rewrite model.onnx`."""

from onnx_clip_pass.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
