"""What does watching a training step cost, beside the same step with its states carried?

Plain is the step in a session of its own, its states handed from its outputs to its inputs as they
are, and its loss read. Both are run by turns in one process, with one thread in time of the
processor. ResNet-50 and BERT-base are exported by `watched_steps.py`, which needs PyTorch; a net
of dense layers is made here, with so few rows that its step hardly does more than touch all
weights.

Each step has a process of its own: ``python watching.py FOLDER THREADS TURNS`` prints what it
measured as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import Sheet, Values, by_turns, ours, thread_word

PLAIN, WATCHED = "plain", "onnx-clip watch"
EXPORTED = {
    "ResNet-50": "ResNet-50, 32 images of 64 x 64, SGD with momentum",
    "BERT-base": "BERT-base, 8 x 64 tokens, SGD with momentum",
}
WIDTH, LAYERS = 2048, 4
ROWS = (64, 256, 1024)


def sheets(
    *, quick: bool, turns: int, threads: Sequence[int], torch_python: str | None
) -> Iterator[Sheet]:
    """Each step, with so many threads each."""
    with tempfile.TemporaryDirectory() as place:
        for rows in ROWS[: 1 if quick else None]:
            title = f"{LAYERS} dense layers of {WIDTH} x {WIDTH}, {rows} rows, SGD"
            dense(Path(place), rows)
            yield from contests(title, Path(place), threads, turns)
    for name, title in EXPORTED.items() if torch_python and not quick else ():
        with tempfile.TemporaryDirectory() as place:
            maker = Path(__file__).with_name("watched_steps.py")
            subprocess.run([str(torch_python), maker, name, place], check=True)
            yield from contests(title, Path(place), threads, turns)


def contests(title: str, folder: Path, threads: Sequence[int], turns: int) -> Iterator[Sheet]:
    """Both ways of the step in a folder, for each number of threads."""
    for number in threads:
        command = [sys.executable, __file__, str(folder), str(number), str(turns)]
        done = subprocess.run(command, capture_output=True, text=True)
        sheet = Sheet(f"{title}, {thread_word(number)}", PLAIN, {"ms": {}}, compared=("ms",))
        if done.returncode:
            sheet.failures[WATCHED] = (done.stderr.strip().splitlines() or ["no message"])[-1]
        else:
            for row, seconds in json.loads(done.stdout).items():
                sheet.columns["ms"][row] = [1e3 * value for value in seconds]
            sheet.ours = ours(sheet.columns["ms"])
        yield sheet


def dense(folder: Path, rows: int) -> None:
    """Write a step of dense layers with tanh between them, whose states are its weights."""
    import numpy as np
    import onnx

    back = ["e = Sub(h0, wanted)", "d0 = Mul(e, scale)"]
    ahead = []
    for n in range(LAYERS):  # from the end: layer n makes h{n} of h{n + 1}
        ahead.insert(0, f"z{n} = MatMul(h{n + 1}, W{n}) h{n} = Tanh(z{n})")
        back.append(
            f"s{n} = Mul(h{n}, h{n}) c{n} = Sub(one, s{n}) p{n} = Mul(d{n}, c{n}) "
            f"t{n} = Transpose(h{n + 1}) g{n} = MatMul(t{n}, p{n}) "
            f"u{n} = Mul(g{n}, rate) W{n}_new = Sub(W{n}, u{n})"
        )
        if n < LAYERS - 1:
            back.append(f"v{n} = Transpose(W{n}) d{n + 1} = MatMul(p{n}, v{n})")
    shape = f"float[{WIDTH}, {WIDTH}]"
    inputs = ", ".join(f"{shape} W{n}" for n in range(LAYERS))
    outputs = ", ".join(f"{shape} W{n}_new" for n in range(LAYERS))
    batch = f"float[{rows}, {WIDTH}]"
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 18]> step ({inputs}, {batch} h{LAYERS}, '
        f"{batch} wanted) => (float loss, {outputs}) <float one = {{1}}, float rate = {{0.01}}, "
        f"float scale = {{{2 / (rows * WIDTH)}}}> {{ {' '.join(ahead)} {' '.join(back)} "
        f"q = Mul(e, e) loss = ReduceMean <keepdims = 0> (q) }}"
    )
    onnx.save(model, folder / "step.onnx")
    rng = np.random.default_rng(0)
    weights = {
        f"W{n}": rng.standard_normal((WIDTH, WIDTH), np.float32) / np.float32(WIDTH**0.5)
        for n in range(LAYERS)
    }
    data = {
        name: rng.standard_normal((rows, WIDTH), np.float32) for name in (f"h{LAYERS}", "wanted")
    }
    np.savez(folder / "states.npz", **weights)
    np.savez(folder / "batch.npz", **data)


def measured(folder: Path, threads: int, turns: int) -> Values:
    """Seconds of each way, turn by turn."""
    import numpy as np
    import onnxruntime as ort

    from onnx_clip_pass.monitoring import plan_watch
    from onnx_clip_pass.monitoring.batches import Batch
    from onnx_clip_pass.runtime import open_session
    from onnx_clip_pass.storage import load_model

    class Options(ort.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = threads

    ort.SessionOptions = Options
    planned = plan_watch(folder / "step.onnx")
    loss, carried = planned.head.loss, planned.carried
    states, batch = dict(np.load(folder / "states.npz")), dict(np.load(folder / "batch.npz"))
    run = planned.open(states, 0, "cpu")
    session = open_session(load_model(folder / "step.onnx"))
    kept: dict[str, Any] = {name: session.value(name, array) for name, array in states.items()}

    def plain() -> None:
        fed = {name: session.value(name, array) for name, array in batch.items()}
        found = session.run_values(kept | fed, [loss, *carried.values()])
        session.array(found[loss])
        kept.update({state: found[new] for state, new in carried.items()})

    def watched() -> None:
        run.measure([Batch("the batch", batch)])
        run.advance()

    return by_turns({PLAIN: plain, WATCHED: watched}, turns, threads=threads)


if __name__ == "__main__":
    place, threads, turns = sys.argv[1:]
    print(json.dumps(measured(Path(place), int(threads), int(turns))))
