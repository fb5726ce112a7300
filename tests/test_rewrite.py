"""What a rewrite does to a graph: what stays, what is put in, and where it can not be put in.

Which readers keep the raw gradient is told in `test_raw_gradients.py`.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import parse, run
from onnx import TensorProto

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients, strip

ONE = GradientClipByNorm(1.0)
STEP = """
    step (float[2] W, float[2,2] x, float lr) => (float[2] W_new, float loss)
    <float[2] ones = {1, 1}> {
      y = MatMul(W, x)
      loss = ReduceSum <keepdims = 0> (y)
      g = MatMul(x, ones)
      move = Mul(g, lr)
      W_new = Sub(W, move)
    }"""  # the gradient of the sum of W @ x by W is the sum of each row of x


def chain(prefix: str, norm: str = "clip/g/norm") -> list[tuple[str, list[str], list[str]]]:
    """The four nodes that clip `g` at norm 1, after its producer gave it the name clip/g/raw."""
    one = "clip/1:float32"
    return [
        (f"{prefix}ReduceL2", ["clip/g/raw"], [norm]),
        (f"{prefix}Div", [one, norm], ["clip/g/ratio"]),
        (f"{prefix}Min", ["clip/g/ratio", one], ["clip/g/scale"]),
        (f"{prefix}Mul", ["clip/g/raw", "clip/g/scale"], ["g"]),
    ]


def written(graph: onnx.GraphProto) -> list[tuple[str, list[str], list[str]]]:
    return [(node.op_type, list(node.input), list(node.output)) for node in graph.node]


# -- what stays --------------------------------------------------------------------------------


def test_the_given_model_stays_as_it_was():
    model = parse(STEP)
    before = model.SerializeToString(deterministic=True)
    clip_gradients(model, ONE)
    assert model.SerializeToString(deterministic=True) == before


def test_an_infinite_clip_norm_leaves_every_part_of_the_graph_alone():
    model = parse(STEP)
    clipped = clip_gradients(model, GradientClipByNorm(float("inf")))
    assert clipped.graph == model.graph
    assert strip(clipped) == model


def test_a_predicate_that_picks_nothing_leaves_the_model_alone():
    model = parse(STEP)
    assert clip_gradients(model, GradientClipByNorm(1.0, need_clip=lambda p: False)) == model


def test_all_that_the_clip_does_not_touch_is_the_same_afterwards():
    model = parse(
        """
        s (float[2] x) => (float[2] g, float[2] other) {
          g = Exp(x)
          other = local.helper(x)
        }
        <domain: "local", opset_import: ["" : 17]>
        helper (a) => (b) { b = Neg(a) }"""
    )
    model.producer_name, model.model_version, model.doc_string = "p", 3, "words"
    model.metadata_props.add(key="theirs", value="kept")
    graph = model.graph
    graph.doc_string = "of the graph"
    for item in (*graph.node, *graph.input, *graph.output):
        item.doc_string = f"about {item.name}"
    note = graph.quantization_annotation.add(tensor_name="g")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="x")
    values = TensorProto(name="sparse", data_type=TensorProto.FLOAT, dims=[1], float_data=[5.0])
    indices = TensorProto(data_type=TensorProto.INT64, dims=[1], int64_data=[2])
    graph.sparse_initializer.add(dims=[4], values=values, indices=indices)
    model.training_info.add().algorithm.name = "kept"
    unknown = b"\xfa\x3f\x03new"  # field 1023, which no version of ONNX defines
    model = onnx.ModelProto.FromString(model.SerializeToString() + unknown)
    model.graph.node[0].MergeFromString(unknown)

    clipped = clip_gradients(model, ONE, gradients=["g"])
    assert unknown in clipped.SerializeToString()
    rest = onnx.ModelProto()
    rest.CopyFrom(clipped)
    rest.metadata_props.pop()
    added = [node for node in rest.graph.node if node.name.startswith("clip/")]
    assert [node.op_type for node in added] == ["ReduceL2", "Div", "Min", "Mul"]
    for node in added:
        rest.graph.node.remove(node)
    assert rest.graph.node[0].output[0] == "clip/g/raw"
    rest.graph.node[0].output[0] = "g"
    del rest.graph.initializer[:]
    del rest.graph.value_info[:]
    assert rest == model
    assert strip(clipped) == model


# -- what is put in ----------------------------------------------------------------------------


def test_the_clip_stands_behind_the_maker_and_bears_the_gradients_name():
    model = parse(STEP)
    clipped = clip_gradients(model, ONE)
    assert written(clipped.graph) == [
        ("MatMul", ["W", "x"], ["y"]),
        ("ReduceSum", ["y"], ["loss"]),
        ("MatMul", ["x", "ones"], ["clip/g/raw"]),
        *chain(""),
        ("Mul", ["g", "lr"], ["move"]),
        ("Sub", ["W", "move"], ["W_new"]),
    ]
    onnx.checker.check_model(clipped, full_check=True)


def test_a_step_moves_by_the_clipped_gradient():
    model = parse(STEP)
    feeds = {"W": [1, 1], "x": [[3, 0], [0, 4]], "lr": 1}  # g is [3, 4]
    feeds = {name: np.array(value, np.float32) for name, value in feeds.items()}
    out = run(clip_gradients(model, ONE), feeds)
    np.testing.assert_allclose(out["W_new"], [1 - 0.6, 1 - 0.8], rtol=1e-6)


def test_a_gradient_listed_twice_as_output_stays_listed_twice():
    model = parse("s (float[2] x) => (float[2] g, float[2] g) { g = Exp(x) }")
    clipped = clip_gradients(model, ONE, gradients=["g"])
    assert [value.name for value in clipped.graph.output] == ["g", "g"]
    assert clipped.graph.output == model.graph.output
    assert written(clipped.graph)[1:] == chain("")


def test_a_gradient_that_is_an_input_keeps_its_name_as_the_raw_value():
    model = parse("""
        optimizer (float[2] W, float[2] g, float lr) => (float[2] W_new) {
          move = Mul(g, lr)
          W_new = Sub(W, move)
        }""")
    clipped = clip_gradients(model, ONE)
    assert clipped.graph.input == model.graph.input
    assert written(clipped.graph)[-3:] == [
        ("Mul", ["g", "clip/g/scale"], ["clip/g/clipped"]),
        ("Mul", ["clip/g/clipped", "lr"], ["move"]),
        ("Sub", ["W", "move"], ["W_new"]),
    ]
    assert strip(clipped) == model


def test_a_gradient_that_is_input_and_output_is_refused():
    model = parse("s (float[2] g) => (float[2] g, float[2] h) { h = Neg(g) }")
    with pytest.raises(OnnxClipError, match="'g' is an input and an output of the same graph"):
        clip_gradients(model, ONE, gradients=["g"])


def test_an_initializer_that_is_a_gradient_gets_a_new_name_and_keeps_its_payload():
    model = parse("s (float[2] x) => (float[2] y) <float[2] g = {3, 4}> { y = Add(x, g) }")
    clipped = clip_gradients(model, ONE, gradients=["g"])
    before, after = model.graph.initializer[0], clipped.graph.initializer[0]
    assert after.name == "clip/g/raw"
    after.name = "g"
    assert after == before
    assert written(clipped.graph) == [*chain(""), ("Add", ["x", "g"], ["y"])]
    np.testing.assert_allclose(
        run(clip_gradients(model, ONE, gradients=["g"]), {"x": np.zeros(2, np.float32)})["y"],
        [0.6, 0.8],
        rtol=1e-6,
    )


def test_a_sparse_initializer_that_is_a_gradient_is_refused():
    model = parse("s (float[4] x) => (float[4] y) { y = Add(x, g) }")
    values = TensorProto(name="g", data_type=TensorProto.FLOAT, dims=[1], float_data=[5.0])
    indices = TensorProto(data_type=TensorProto.INT64, dims=[1], int64_data=[2])
    model.graph.sparse_initializer.add(dims=[4], values=values, indices=indices)
    with pytest.raises(OnnxClipError, match="'g' is a sparse initializer"):
        clip_gradients(model, ONE, gradients=["g"])


def test_a_later_output_of_a_node_whose_first_is_left_out_is_clipped():
    model = parse("""
        s (float[4] x) => (float[2] g) <int64[2] parts = {2, 2}> { first, g = Split(x, parts) }""")
    model.graph.node[0].output[0] = ""
    clipped = clip_gradients(model, ONE, gradients=["g"])
    assert list(clipped.graph.node[0].output) == ["", "clip/g/raw"]
    assert written(clipped.graph)[1:] == chain("")


def test_a_norm_that_the_graph_reports_is_the_norm_of_the_clipped_gradient():
    model = parse("""
        s (float[2] x) => (float[2] g, float norm) {
          g = Neg(x)
          norm = ReduceL2 <keepdims = 0> (g)
        }""")
    out = run(clip_gradients(model, ONE, gradients=["g"]), {"x": np.array([3, 4], np.float32)})
    np.testing.assert_allclose(out["g"], [-0.6, -0.8], rtol=1e-6)
    np.testing.assert_allclose(out["norm"], 1.0, rtol=1e-6)


# -- one value, two parameters -----------------------------------------------------------------

TIED = """
    step (float[2] W, float[2] V, float[2,2] x, float lr)
         => (float[2] W_new, float[2] V_new, float loss) <float[2] ones = {1, 1}> {
      sum = Add(W, V)
      y = MatMul(sum, x)
      loss = ReduceSum <keepdims = 0> (y)
      g = MatMul(x, ones)
      w_move = Mul(g, lr)
      v_move = Mul(g, lr)
      W_new = Sub(W, w_move)
      V_new = Sub(V, v_move)
    }"""
ONLY_W = GradientClipByNorm(1.0, need_clip="W")


def test_of_two_parameters_with_one_gradient_only_the_picked_one_moves_less():
    model = parse(TIED)
    zero = np.zeros(2, np.float32)
    feeds = {"W": zero, "V": zero, "x": np.diag([3, 4]).astype("f4"), "lr": np.float32(1)}
    out = run(clip_gradients(model, ONLY_W), feeds)
    np.testing.assert_allclose(out["W_new"], [-0.6, -0.8], rtol=1e-6)
    np.testing.assert_array_equal(out["V_new"], [-3, -4])
    assert strip(clip_gradients(model, ONLY_W)) == model


def test_optimizers_that_take_one_gradient_themselves_are_told_apart():
    """No node lies between the gradient and either of them."""
    model = parse(
        """
        step (float[2] W, float[2] V, float[2] x, float lr) => (float[2] W_new, float[2] V_new) {
          g = Transpose(x)
          W_new = com.microsoft.SGDOptimizer(lr, W, g)
          V_new = com.microsoft.SGDOptimizer(lr, V, g)
        }""",
    )
    clipped = clip_gradients(model, ONLY_W)
    taken = {node.output[0]: node.input[2] for node in clipped.graph.node if "lr" in node.input}
    assert taken["V_new"] == "g"
    made = next(node for node in clipped.graph.node if taken["W_new"] in node.output)
    assert (made.op_type, made.input[0]) == ("Mul", "g")
    assert strip(clipped) == model


def test_an_output_that_two_parameters_share_is_refused_when_one_is_picked():
    model = parse(
        """
        step (float[2] W, float[2] V, float[2] x, float lr)
             => (float[2] W_new, float[2] V_new, float[2] g) {
          g = Transpose(x)
          W_new = com.microsoft.SGDOptimizer(lr, W, g)
          V_new = com.microsoft.SGDOptimizer(lr, V, g)
        }""",
    )
    with pytest.raises(OnnxClipError, match=r"parameters 'W' and 'V', .* but an output takes it"):
        clip_gradients(model, ONLY_W)


def test_a_node_that_two_parameters_share_is_refused_when_one_is_picked():
    model = parse(TIED.replace("v_move)", "w_move)"))
    with pytest.raises(OnnxClipError, match=r"parameters 'W' and 'V', .* but a node takes it"):
        clip_gradients(model, ONLY_W)
    clipped = clip_gradients(model, ONE)
    assert [node.op_type for node in clipped.graph.node].count("ReduceL2") == 1


# -- training_info ------------------------------------------------------------------------------


def test_the_algorithm_of_a_training_info_is_clipped():
    model = parse("inference (float[2] x) => (float[2] y) <float[2] W = {1, 2}> { y = Mul(x, W) }")
    algorithm = onnx.parser.parse_graph(STEP)
    model.training_info.add().algorithm.CopyFrom(algorithm)
    clipped = clip_gradients(model, ONE, gradients={"g": "W"})
    assert clipped.graph == model.graph
    assert written(clipped.training_info[0].algorithm)[3:7] == chain("")
    assert strip(clipped) == model


# -- refusals ----------------------------------------------------------------------------------


def test_all_faults_of_a_model_are_reported_at_once():
    model = parse("""
        s (bool[2] x, int64[2] n, float[2] g) => (bool[2] flag, int64[2] whole, float[2] g) {
          flag = Not(x)
          whole = Neg(n)
        }""")
    with pytest.raises(OnnxClipError) as caught:
        clip_gradients(model, ONE, gradients=["flag", "whole", "g"])
    assert len(caught.value.faults) == 3
    assert "'flag': expected a floating tensor, but it is bool" in caught.value.faults[0]
    assert "'whole': expected a floating tensor, but it is int64" in caught.value.faults[1]
    assert "'g' is an input and an output" in caught.value.faults[2]


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), "much", None, True, [1.0]])
def test_a_clip_norm_that_is_no_positive_number_is_refused_by_value(bad: object):
    with pytest.raises(OnnxClipError, match="clip_norm must be a positive number") as caught:
        GradientClipByNorm(bad)  # type: ignore[arg-type]
    assert repr(bad) in str(caught.value)


def test_an_unknown_gradient_is_refused_with_a_suggestion():
    model = parse("s (float[2] x) => (float[2] weight_grad) { weight_grad = Neg(x) }")
    with pytest.raises(OnnxClipError, match=r"'wieght_grad' is no value .*'weight_grad'\?"):
        clip_gradients(model, ONE, gradients=["wieght_grad"])


def test_one_name_instead_of_a_list_is_refused():
    with pytest.raises(OnnxClipError, match="must be a list of names, not the string 'g'"):
        clip_gradients(parse(STEP), ONE, gradients="g")


def test_something_that_is_no_clip_is_refused():
    with pytest.raises(OnnxClipError, match=r"expected a clip such as .* not 1\.0"):
        clip_gradients(parse(STEP), 1.0)  # type: ignore[arg-type]


def test_a_graph_without_gradients_is_refused_with_what_was_looked_for():
    model = parse("s (float[2] x) => (float[2] y) { y = Neg(x) }")
    with pytest.raises(OnnxClipError, match=r"no gradients found; .* Looked for .* outputs 'y'"):
        clip_gradients(model, ONE)


def test_a_pattern_that_matches_nothing_is_refused_with_what_there_is():
    with pytest.raises(OnnxClipError, match=r"^pattern 'nowhere' matches no .*there is: 'W'$"):
        clip_gradients(parse(STEP), GradientClipByNorm(1.0, need_clip="nowhere"))


def test_a_gradient_that_is_cast_like_a_parameter_has_its_dtype():
    model = parse(
        """
        step (float[2] W, float16[2] h) => (float[2] W_new) {
            g = CastLike(h, W) W_new = Sub(W, g) }"""
    )
    clipped = clip_gradients(model, GradientClipByNorm(1.0), gradients={"g": "W"})
    feeds = {"W": np.float32([1, 1]), "h": np.float16([3, 4])}
    np.testing.assert_allclose(run(clipped, feeds)["W_new"], [0.4, 0.2], rtol=1e-6)  # float32


CYCLES = {
    "of one node": "g = Mul(g, lr) W_new = Sub(W, g)",
    "of two": "g = Identity(h) h = Identity(g) W_new = Sub(W, g)",
    "through the update": "W_new = Sub(W, g) g = Mul(lr, W_new)",
    "through a branch": """
        g = If(yes) <then_branch = t () => (float[2] p) { p = Mul(g, lr) },
                     else_branch = e () => (float[2] q) { q = Identity(W) }>
        W_new = Sub(W, g)""",
}


@pytest.mark.parametrize("nodes", CYCLES.values(), ids=CYCLES)
@pytest.mark.parametrize("gradients", [None, ["g"]], ids=["searched", "named"])
def test_nodes_that_form_a_cycle_are_refused(nodes, gradients):
    model = parse(f"step (float[2] W, float lr, bool yes) => (float[2] W_new) {{ {nodes} }}")
    with pytest.raises(OnnxClipError, match="would have to depend on itself: it takes what is"):
        clip_gradients(model, ONE, gradients=gradients)


def test_nodes_that_only_stand_in_the_wrong_order_are_not_moved():
    model = parse(
        """step (float[2] W, float[2] x, float lr) => (float[2] W_new) {
            W_new = Sub(W, move) move = Mul(g, lr) g = Exp(x) }"""
    )
    clipped = clip_gradients(model, ONE, gradients=["g"])
    assert [node.op_type for node in clipped.graph.node][:3] == ["Sub", "Mul", "Exp"]
    assert strip(clipped) == model


def test_a_clip_that_would_change_nothing_is_refused():
    """Both gradients are computed from `d`: what is put behind it alone would reach no update."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        step (float[5] x, float[5] y, float[5] a, float[5] c)
          => (float loss, float[5] a_new, float[5] c_new)
        <float two = {2.0}, float rate = {0.1}>
        {
            p = Mul (a, x)
            q = Add (p, c)
            e = Sub (q, y)
            loss = ReduceSumSquare <keepdims: int = 0> (e)
            d = Identity (e)
            f = Mul (d, two)
            g = Mul (f, x)
            s = Mul (g, rate)
            a_new = Sub (a, s)
            t = Mul (f, rate)
            c_new = Sub (c, t)
        }""")
    assert len(clip_gradients(model, GradientClipByNorm(1.0)).graph.node) > len(model.graph.node)
    with pytest.raises(OnnxClipError, match="its clip would change nothing; name the value"):
        clip_gradients(model, GradientClipByNorm(1.0), gradients={"d": "c", "g": "a"})
