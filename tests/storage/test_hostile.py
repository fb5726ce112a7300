"""A file from anywhere ends in success or in an OnnxClipError, soon and in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from apart import Apart
from bytewise import make_step, sub, varint
from graphs import MODELS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients_file
from onnx_clip_pass.storage import messages

RUNS = 100_000 if os.environ.get("ONNX_CLIP_NIGHTLY") == "1" else 2_000
MOST = 500_000  # KiB on Linux, of which what is imported takes 100,000
FILES = [path.read_bytes() for path in sorted(MODELS.rglob("*.onnx")) if path.stat().st_size < 6000]

models = st.sampled_from(FILES)
places = st.floats(0, 1, exclude_max=True)
numbers = st.sampled_from([0, 1, 2**7, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1]).map(varint)
patches = st.one_of(
    st.tuples(places, st.integers(1, 4), st.binary(min_size=1, max_size=4)),  # flip
    st.tuples(places, st.integers(1, 60), st.just(b"")),  # cut
    st.tuples(places, st.sampled_from([0, 20]), st.tuples(models, places, st.integers(1, 60))),
    st.tuples(places, st.integers(1, 2), numbers),
)


def patched(data: bytes, place: float, length: int, new) -> bytes:
    at = int(place * len(data))
    if isinstance(new, tuple):
        other, start, count = new
        new = other[int(start * len(other)) :][:count]
    return data[:at] + new + data[at + length :]


@settings(max_examples=RUNS, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=models, changes=st.lists(patches, min_size=1, max_size=4))
def test_a_damaged_model_is_rewritten_or_refused(data: bytes, changes):
    for change in changes:
        data = patched(data, *change)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "in.onnx"), Path(folder, "out")
        source.write_bytes(data)
        out.mkdir()
        try:
            clip_gradients_file(source, out / "out.onnx", GradientClipByNorm(1.0))
        except OnnxClipError:
            assert not list(out.iterdir())
        assert sorted(Path(folder).iterdir()) == [source, out]
        assert source.read_bytes() == data


# -- by hand -----------------------------------------------------------------------------------

MEASURE = """
from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients_file
from onnx_clip_pass.storage import messages
def answer(source, out):
    try:
        clip_gradients_file(source, out, GradientClipByNorm(1.0))
    except OnnxClipError as error:
        return error
"""


@pytest.fixture(scope="module")
def measured() -> Iterator[Apart]:
    with Apart(MEASURE) as process:
        yield process


def nested(depth: int, *numbers: int) -> bytes:
    """Submessages in each other, by these field numbers over and over."""
    heads: list[bytes] = []
    length = 0
    for level in range(depth - 1, -1, -1):
        heads.append(varint(numbers[level % len(numbers)] << 3 | 2) + varint(length))
        length += len(heads[-1])
    return sub(7, b"".join(reversed(heads)) + 600 * b"\x08\x00")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x3a\x7f", "claims 127 bytes"),
        (b"\x3a" + varint(2**31 - 1) + bytes(1000), "claims 2147483647 bytes"),
        (sub(7, b"\x2a" + varint(2**31 - 1) + bytes(1000)), "claims 2147483647 bytes"),
        (b"\x3a" + 100_000 * b"\xff", "a varint without an end"),
        (sub(7, b"\x08" + 100_000 * b"\x80"), "a varint without an end"),
        (nested(10_000, 1, 5, 6), "is no ONNX model"),
        (nested(10_000, 14), "no gradients found"),
        (10_000 * varint(1000 << 3 | 3) + 10_000 * varint(1000 << 3 | 4), "groups nested"),
        (sub(7, 10_000 * b"\x0b" + 10_000 * b"\x0c"), "groups nested"),
        (sub(7, 1_000_000 * b"\x0a\x00"), "holds more than 750,000 nodes"),
        (sub(7, sub(1, sub(5, sub(6, 800_000 * b"\x0a\x00")))), "holds more than 750,000 nodes"),
        (sub(7, 1_000_000 * b"\x6a\x00"), "holds more than 750,000 declared values"),
        (sub(7, b"") + 1_000_000 * b"\xca\x01\x00", "holds more than 20,000 functions"),
        (sub(7, b"") + 20_001 * b"\xca\x01\x00", "holds more than 20,000 functions"),
        (sub(7, b"") + 1_000_000 * b"\xa2\x01\x00", "more than 1,000 algorithms"),
        (sub(7, b"") + 4_000_000 * b"\x72\x00", "more than 4,000,000 messages"),
    ],
    ids=[
        "beyond",
        "2 GB",
        "2 GB tensor",
        "tag",
        "varint",
        "graphs",
        "unknown",
        "groups",
        "in it",
        "nodes",
        "nested nodes",
        "values",
        "functions",
        "few functions",
        "algorithms",
        "properties",
    ],
)
def test_a_hostile_file_is_refused_in_little_memory(
    tmp_path: Path, data: bytes, reason: str, measured: Apart
):
    source, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    source.write_bytes(data)
    message, memory = measured.ask(str(source), str(out))
    assert reason in message
    assert memory < MOST
    assert not out.exists()


INFER = """
import onnx
from onnx_clip_pass.graph.inference import infer_types
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
def answer(model):
    return infer_types(onnx.parser.parse_model(model))[""]["y"].shape
"""


@pytest.fixture(scope="module")
def inferred() -> Iterator[Callable[[str], str]]:
    """What is inferred for `y`, in a process of its own: onnx's inference can end it."""
    with Apart(INFER) as process:
        yield lambda text: process.ask(f'<ir_version: 8, opset_import: ["": 17]> {text}')[0]


SLICE = "int64[1] s = {0}, int64[1] e = {5}, int64[1] a = {0}, int64[1] a2 = {2}"


def test_slices_of_negative_sizes_do_not_end_the_process(inferred):
    kernel = (
        f"g (float[1, 1, 3] x) => (float[] y) <{SLICE}>"
        "{ z = MaxPool <kernel_shape = [9]> (x)\n y = Slice (z, s, e, a2) }"
    )
    assert inferred(kernel).count("unk__") == 3  # as onnx calls a size that it does not know
    padded = (
        f"g (float[1] x) => (float[] y) <{SLICE}, int64[2] p = {{-5, -5}}>"
        "{ z = Pad (x, p)\n y = Slice (z, s, e, a) }"
    )
    assert inferred(padded).count("unk__") == 1
    behind_a_slice = (  # whose size the first inference does not know
        f"g (float[1, 1, 30] x) => (float[] y) <{SLICE}>"
        "{ w = Slice (x, s, e, a2)\n z = MaxPool <kernel_shape = [9]> (w)\n"
        " y = Slice (z, s, e, a2) }"
    )
    assert inferred(behind_a_slice).count("unk__") == 3


def test_slices_of_known_sizes_are_inferred(inferred):
    twice = (
        f"g (float[b, 1, 30] x) => (float[] y) <{SLICE}>"
        "{ z = Slice (x, s, e, a2)\n y = Slice (z, s, e, a2) }"
    )
    assert inferred(twice) == "('b', 1, 5)"
    more = " ".join(f"v{n} = Slice (v{n - 1}, s, e, a2)\n" for n in range(1, 12))
    often = (
        f"g (float[b, 1, 30] x) => (float[] y) <{SLICE}>"
        f"{{ v0 = Slice (x, s, e, a2)\n {more} y = Neg (v11) }}"
    )
    assert inferred(often) == "('b', 1, 5)"


def test_a_shape_of_any_number_of_axes_does_not_end_the_process(inferred):
    declared = "g (float[1] x, int64[4611686018427387904] s) => (float[] y) { y = Expand (x, s) }"
    assert inferred(declared) == "None"
    computed = (
        "g (float[1] x) => (float[] y) <int64[1] s = {4611686018427387904}>"
        "{ z = ConstantOfShape <value = int64[1] {2}> (s)\n y = Expand (x, z) }"
    )
    assert inferred(computed) == "None"
    known = "g (float[1] x) => (float[] y) <int64[2] s = {2, 3}> { y = Expand (x, s) }"
    assert inferred(known) == "(2, 3)"


@pytest.mark.parametrize(
    "node",
    [
        'Einsum <equation = "i.->i"> (x)',
        'Einsum <equation = "i...j...,jk->i..."> (x, x)',
        "GatherND <batch_dims = -2> (x, at)",
    ],
)
def test_attributes_that_inference_does_not_survive_leave_all_unknown(node: str, inferred):
    text = f"g (float[3, 3] x, int64[3, 1] at) => (float[] y) {{ z = Neg (x)\n y = {node} }}"
    assert "ValueError" in inferred(text)


def test_an_equation_with_dots_is_inferred(inferred):
    text = 'g (float[2, 3, 4] x) => (float[] y) { y = Einsum <equation = "...ij->...ji"> (x) }'
    assert inferred(text) == "(2, 4, 3)"


def test_an_initializer_of_negative_sizes_does_not_end_the_process():
    step = make_step()
    step.graph.initializer.append(onnx.TensorProto(name="D", data_type=1, dims=[-2, -2]))
    step.graph.initializer[-1].float_data.extend([1.0] * 4)
    for name in ("s", "e"):
        step.graph.initializer.append(onnx.helper.make_tensor(name, 7, [1], [name == "e"]))
    step.graph.node.append(onnx.helper.make_node("Slice", ["D", "s", "e", "s"], ["cut"]))
    code = "import sys, onnx; from onnx_clip_pass.graph.inference import infer_types\n"
    code += "print(infer_types(onnx.load_from_string(sys.stdin.buffer.read()))[''].get('D'))"
    command, data = [sys.executable, "-c", code], step.SerializeToString()
    done = subprocess.run(command, input=data, capture_output=True, timeout=60)
    assert done.stdout.strip() == b"None", done.stderr


def test_three_gigabytes_that_are_no_weights_are_refused_in_little_memory(
    tmp_path: Path, measured: Apart
):
    source, size = tmp_path / "model.onnx", 3 << 30
    with source.open("wb") as file:
        file.write(make_step().SerializeToString() + b"\x32" + varint(size))  # doc_string
        file.truncate(file.tell() + size)  # a hole: it takes no space
    message, memory = measured.ask(str(source), str(tmp_path / "out.onnx"))
    assert "without its weights the model still has more than" in message
    assert memory < MOST


def test_messages_are_counted_as_protobuf_has_them():
    def counted(message) -> int:
        held = [value for field, value in message.ListFields() if field.type == field.TYPE_MESSAGE]
        each = (one for value in held for one in (value if hasattr(value, "append") else [value]))
        return sum(1 + counted(one) for one in each)

    model = onnx.load(MODELS / "seed" / "train_step.onnx")
    left = Counter({"": 10**9} | dict.fromkeys(messages._MOST, 10**9))
    messages._count(model.SerializeToString(), messages._kind(model.DESCRIPTOR, {}), left)
    assert 10**9 - left[""] == counted(model) > 50
    assert 10**9 - left["NodeProto"] == len(model.graph.node)
