"""The commands that run a training graph over batches, and take thresholds from its norms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from onnx_clip_pass.arguments import number_in
from onnx_clip_pass.cli.helping import Command
from onnx_clip_pass.cli.options import NUMBER, OUTPUT, PATH, WHOLE, by_name, json_option, refuse
from onnx_clip_pass.cli.pages import PageOptions
from onnx_clip_pass.cli.tables import show_view
from onnx_clip_pass.cli.words import is_quiet, print_json, say, volume_options
from onnx_clip_pass.errors import OnnxClipError

__all__ = ["suggest", "watch"]


def _name(text: str) -> str:
    if not text:
        raise ValueError
    return text


@click.command(cls=Command)
@click.argument("model", type=PATH)
@click.option(
    "--feeds",
    type=OUTPUT,
    required=True,
    metavar="PATH",
    help="Batches: an .npz file, a folder of them, a pattern, or a folder of .npy files.",
)
@click.option("--steps", type=WHOLE, metavar="N", help="How many. [default: one for each batch]")
@click.option(
    "--initial", type=PATH, metavar="FILE", help="An .npz file with states and what no batch has."
)
@click.option(
    "--set",
    "numbers",
    callback=by_name("INPUT=NUMBER such as lr=0.01", number_in, "the input "),
    multiple=True,
    metavar="INPUT=NUMBER",
    help="A number for an input that no batch has, such as lr=0.01. Repeatable.",
)
@click.option(
    "--carry",
    callback=by_name("OUTPUT=INPUT such as W_new=W", _name, "the output ", at_first=True),
    multiple=True,
    metavar="OUTPUT=INPUT",
    help="The output that is an input's new value, where it is not found. Repeatable.",
)
@click.option("--loss", metavar="NAME", help="The output that is the loss. [default: as found]")
@click.option("-o", "--output", type=OUTPUT, help="Where to write each step: JSON lines, or .csv.")
@click.option(
    "--states", type=OUTPUT, metavar="FILE", help="Write the states after the last step (.npz)."
)
@click.option(
    "--states-every",
    type=WHOLE,
    metavar="K",
    help="Write them after every K steps, too: a run that is killed can be gone on with.",
)
@click.option(
    "--micro-batches",
    type=WHOLE,
    default=1,
    show_default=True,
    metavar="K",
    help="For a folder of training artifacts: batches whose gradients are added up in a step.",
)
@click.option("--resume", is_flag=True, help="Go on from --output and --states of a run before.")
@click.option("--force", is_flag=True, help="Replace an output that is there.")
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where ONNX Runtime runs the model.",
)
@PageOptions.declare
@click.option("--dry-run", is_flag=True, help="Show what would be measured and carried.")
@json_option
@volume_options
def watch(
    model: Path,
    feeds: str,
    steps: int | None,
    initial: Path | None,
    numbers: dict[str, float],
    carry: dict[str, str],
    loss: str | None,
    output: str | None,
    states: str | None,
    states_every: int | None,
    micro_batches: int,
    resume: bool,
    force: bool,
    provider: Any,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Run MODEL over batches and record the norms of its gradients; exit code 1 if it diverges.

    A training step goes on from its own new weights and moments; a gradient graph is run as it is.
    MODEL may be a folder of training artifacts, where onnxruntime-training is installed.

    \b
    Examples:
      onnx-clip watch step.onnx --feeds 'batches/*.npz' --steps 200 -o norms.jsonl
      onnx-clip suggest norms.jsonl -o clip.toml
      onnx-clip rewrite step.onnx --rules clip.toml
    """
    from onnx_clip_pass.monitoring import plan_watch
    from onnx_clip_pass.monitoring import watch as run
    from onnx_clip_pass.runtime import load_feeds

    pages = PageOptions.take(options)
    refuse({"--html shows norms: not with --dry-run": pages.html and dry_run})
    pages.check(model, *[Path(each) for each in (output, states) if each is not None])
    if dry_run:
        planned = plan_watch(model, carry=carry, loss=loss, micro_batches=micro_batches)
        if as_json:
            print_json(planned.head.to_json() | {"questions": list(planned.questions())})
        else:
            show_view(planned.view())
        return 1 if any(planned.questions()) else 0
    given: dict[str, Any] = dict(load_feeds(initial)) if initial is not None else {}
    given |= _as_inputs(model, numbers)
    norms = run(
        model,
        feeds,
        steps=steps,
        initial=given,
        carry=carry,
        loss=loss,
        to=output,
        states=states,
        states_every=states_every,
        micro_batches=micro_batches,
        resume=resume,
        force=force,
        provider=provider,
        progress=not is_quiet(),
    )
    if as_json:
        print_json(
            norms.head.to_json()
            | {"steps": len(norms), "stopped": norms.stopped, "percentiles": _percentiles(norms)}
        )
    else:
        show_view(norms.view())
    if output is not None and not is_quiet():
        say(f"wrote {output}")
    pages.write_on(norms)
    return 1 if norms.stopped else 0


def _as_inputs(model: Path, numbers: dict[str, float]) -> dict[str, Any]:
    """Numbers as arrays of the dtype and shape of their inputs."""
    if not numbers:
        return {}
    import numpy as np
    import onnx

    inputs = _inputs_of(model)
    if unknown := [name for name in numbers if name not in inputs]:
        raise OnnxClipError(f"--set: the model has no input {unknown[0]!r}")
    found = {}
    for name, number in numbers.items():
        kind = inputs[name]
        if kind is None or kind.dtype in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
            raise OnnxClipError(f"--set: the input {name!r} is no tensor of numbers")
        with np.errstate(all="ignore"):  # what is lost is refused
            cast = np.array(number).astype(onnx.helper.tensor_dtype_to_np_dtype(kind.dtype))
            back = float(cast.astype(np.float64))
        is_same = back == number or (math.isnan(back) and math.isnan(number))
        is_rounded = cast.dtype.kind not in "biu" and math.isfinite(back) == math.isfinite(number)
        if not is_same and not is_rounded:
            raise OnnxClipError(
                f"--set: the input {name!r} is {kind.dtype_name}, which cannot be {number:g}"
            )
        shape = [dim if isinstance(dim, int) and dim > 0 else 1 for dim in kind.shape or ()]
        found[name] = np.full(shape, cast)
    return found


def _inputs_of(model: Path) -> dict[str, Any]:
    """The types of the inputs of a model; of a folder those of its training model, and its rate."""
    from onnx_clip_pass.artifacts.layout import find_layout
    from onnx_clip_pass.graph import TensorType
    from onnx_clip_pass.graph.spec import FLOAT
    from onnx_clip_pass.monitoring.training import RATE
    from onnx_clip_pass.storage import open_model

    further = {}
    if model.is_dir():
        model = model / find_layout(model).training
        further[RATE] = TensorType(FLOAT, ())
    with open_model(model) as structure:
        inputs = {value.name: TensorType.of(value.type) for value in structure.model.graph.input}
    return inputs | further


def _percentiles(norms: Any) -> dict[str, dict[str, float | None]]:
    from math import isfinite

    return {
        f"{q}": {name: (x if isfinite(x) else None) for name, x in norms.percentile(q).items()}
        for q in (50, 90, 99, 100)
    }


@click.command(cls=Command)
@click.argument("norms", type=PATH)
@click.option(
    "--percentile",
    type=NUMBER,
    default=90.0,
    show_default=True,
    metavar="P",
    help="The share of norms that stay as they are, in percent.",
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="PATTERN",
    help="Parameters with one norm together. Repeatable; the first that matches.",
)
@click.option(
    "--each",
    type=click.Choice(["gradient", "global"]),
    default="gradient",
    show_default=True,
    help="A threshold for each of the others, or one for all of them together.",
)
@click.option(
    "--steps", type=WHOLE, metavar="N", help="Only the first N: of a lost run those before."
)
@click.option("-o", "--output", type=OUTPUT, help="Write the rules: clip.toml.")
@click.option("--force", is_flag=True, help="Replace an output that is there.")
@json_option
@volume_options
def suggest(
    norms: Path,
    percentile: float,
    groups: tuple[str, ...],
    each: Any,
    steps: int | None,
    output: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Take thresholds from NORMS, which `watch` has written, as rules for `rewrite`.

    \b
    Examples:
      onnx-clip suggest norms.jsonl                         # shows them
      onnx-clip suggest norms.jsonl -o clip.toml --percentile 95 --steps 90
      onnx-clip suggest norms.jsonl -o clip.toml --each global --group 'embed*'
    """
    from onnx_clip_pass.monitoring import read_norms
    from onnx_clip_pass.storage import errors_name, file_at, write_bytes

    found = read_norms(norms).suggest(percentile, groups=groups, each=each, steps=steps)
    if output is not None:
        target = Path(output)
        with errors_name(target):
            if file_at(target, "clip.toml") and not force:
                raise OnnxClipError(f"{output!r} is there already; --force replaces it")
        write_bytes(target, found.toml().encode())
    if as_json:
        print_json(found.to_json())
    else:
        show_view(found.view())
        if output is not None and not is_quiet():
            say(f"wrote {output}; onnx-clip rewrite MODEL --rules {output} takes it")
