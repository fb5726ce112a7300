"""Updates by operators that nobody knows, and graphs that only look like an optimizer."""


def test_the_only_state_of_an_unknown_operator_is_trained_whatever_reads_it(find_after_backward):
    found = find_after_backward(
        "down = ReduceSum <keepdims = 0> (y_slope, first)"
        "  W_new = vendor.SGD (W, g)  b_new = vendor.SGD (b, down)",
        more_inputs=", float[3] b, int64[1] first",
        more_outputs=", float[3] b_new",
    )
    assert found == [("g", "W"), ("down", "b")]


def test_a_layer_that_reports_its_mean_is_no_optimizer(find):
    found = find(
        "mean = ReduceMean <keepdims = 0> (x)  centred = Sub (x, mean)  y = Add (centred, b)",
        inputs="float[2,3] x, float[2,3] b",
        outputs="float[2,3] y, float mean",
    )
    assert found == []
