"""Modules that need onnxruntime-training, which --doctest-modules would import."""

from __future__ import annotations

collect_ignore = ["parity.py", "parity_table.py"]
