"""Which shapes a gradient may have: its parameter's, with seeds, or packed as onnx-ad does."""

from __future__ import annotations

import pytest
from onnx import TensorProto

from onnx_clip_pass.gradients.found import has_gradient_shape
from onnx_clip_pass.graph import TensorType

SHAPES = {
    "its parameter's": ((4, 3), (4, 3), True),
    "another": ((3, 4), (4, 3), False),
    "with seeds behind": ((2, 3, 4, "seeds"), (2, 3, 4), True),
    "packed": ((24, "seeds"), (2, 3, 4), True),
    "packed, of another size": ((12, "seeds"), (2, 3, 4), False),
    "packed, of a vector": ((5, "seeds"), (5,), True),
    "packed, the seeds counted": ((24, 2), (2, 3, 4), False),
    "packed, of unknown size": ((24, "seeds"), (2, "N", 12), False),
    "no shape": (None, (4, 3), True),
}


@pytest.mark.parametrize(("gradient", "parameter", "is_one"), SHAPES.values(), ids=SHAPES)
def test_a_gradient_has_the_shape_of_its_parameter_with_seeds_or_packed(
    gradient, parameter, is_one
):
    one, other = (TensorType(TensorProto.FLOAT, shape) for shape in (gradient, parameter))
    assert has_gradient_shape(one, other) is is_one
