"""What docs/jax.md says does not export; `test_docs` runs the page itself.

Runs where JAX and jax2onnx are, in the session `jax`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX makes the graphs")
to_onnx = pytest.importorskip("jax2onnx", reason="jax2onnx exports them").to_onnx
ort = pytest.importorskip("onnxruntime")


pytestmark = pytest.mark.filterwarnings("default")  # those of the exporter, among themselves


class TestWhatDoesNotExport:
    """Faults that docs/jax.md names: a test that fails here says that one of them is gone."""

    def test_a_gradient_of_a_product_of_two_matrices_is_not_the_slope(self):
        def gradient(w: Any, x: Any) -> Any:
            return jax.grad(lambda w: jax.numpy.sum((x @ w) ** 2))(w)

        rng = np.random.default_rng(0)
        w, x = (rng.normal(size=(3, 3)).astype(np.float32) for _ in range(2))
        model = to_onnx(gradient, inputs=[(3, 3), (3, 3)], input_names=["w", "x"])
        session = ort.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (got,) = session.run(None, {"w": w, "x": x})
        wanted = np.asarray(gradient(w, x))
        assert np.abs(got - wanted).max() > 0.1 * np.abs(wanted).max()

    def test_a_gradient_of_a_convolution_is_not_exported(self):
        def gradient(w: Any, x: Any) -> Any:
            def loss(w: Any) -> Any:
                return jax.numpy.sum(jax.lax.conv(x, w, (1, 1), "SAME") ** 2)

            return jax.grad(loss)(w)

        with pytest.raises(NotImplementedError, match="Unsupported conv layouts"):
            to_onnx(gradient, inputs=[(4, 2, 3, 3), (5, 2, 6, 6)])
