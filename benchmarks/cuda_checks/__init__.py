"""Checks of clips on a provider of ONNX Runtime, CUDA's or in its place the CPU's."""
