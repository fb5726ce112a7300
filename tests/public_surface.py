"""The public surface, as public_surface.txt beside this file lists it; docs/stability.md.

python tests/public_surface.py --write      # after a change that is meant
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import griffe
import numpy as np
import onnx

from onnx_clip_pass.cli import main
from onnx_clip_pass.cli.commands import COMMANDS
from onnx_clip_pass.clips import CLIPS
from onnx_clip_pass.record import KEY
from onnx_clip_pass.rules.loading import keys_of_a_rule

__all__ = ["LISTING", "WRITE", "surface"]

HERE = Path(__file__).parent
EARLIER = HERE / "earlier_versions"
LISTING = HERE / "public_surface.txt"
WRITE = "python tests/public_surface.py --write"
ADAPTER = "onnx_clip_pass.adapters.onnx_ir.ClipGradients"
CONSTRUCTED = {"AutoClip", "Bounds", "ProgressBar", "Rule", "ZClip", ADAPTER}
"""Classes that callers make themselves, beside clips; of the others no constructor is public."""
RETURNED = {
    "ExplainedStep": "gradients.explaining.ExplainedStep",
    "GradientCheck": "verification.report.GradientCheck",
    "OutputCheck": "verification.report.OutputCheck",
    "Suggestion": "monitoring.suggesting.Suggestion",
}
"""Classes that public functions return and that have no public name: what they have is public."""


# -- Python ------------------------------------------------------------------------------------


def python() -> Iterator[str]:
    """Every public name with its signature, every class with its public members.

    Signatures are those that callers see, by inspection; members and their types are as they stand
    in the source. A clip's fields are its settings, and of its methods `apply` alone is public.
    """
    written = griffe.load("onnx_clip_pass", resolve_aliases=True)
    paths = {name: _end(written[name]).path for name in written.exports or ()}
    paths |= {name: f"onnx_clip_pass.{path}" for name, path in RETURNED.items()}
    for name, path in sorted({**paths, ADAPTER: ADAPTER}.items()):
        module, _, own = path.rpartition(".")
        found = griffe.inspect(module, filepath=None)[own]
        source = written[path.partition(".")[2]]
        if isinstance(found, griffe.Function):
            yield from _signature(name, found)
        elif isinstance(source, griffe.Class) and isinstance(found, griffe.Class):
            is_made = _is_clip(source) or name in CONSTRUCTED
            yield from _signature(f"class {name}", found) if is_made else [f"class {name}"]
            yield from (f"    {line}" for line in _members(found, source))
        else:
            yield name


def _end(found: griffe.Object | griffe.Alias) -> griffe.Object:
    return found.final_target if isinstance(found, griffe.Alias) else found


def _is_clip(of: griffe.Class) -> bool:
    return any(base.name == "Clip" for base in of.mro())


def _signature(name: str, of: griffe.Function | griffe.Class) -> Iterator[str]:
    """What a call is given, each keyword on a line of its own, and what it returns."""
    by_keyword = griffe.ParameterKind.keyword_only
    given = [each for each in of.parameters if each.name not in ("self", "cls")]
    first = ", ".join(_parameter(each) for each in given if each.kind is not by_keyword)
    returned = of.returns if isinstance(of, griffe.Function) else None
    yield f"{name}({first})" + (f" -> {_short(str(returned))}" if returned is not None else "")
    yield from (f"    {_parameter(each)}" for each in given if each.kind is by_keyword)


def _parameter(of: griffe.Parameter) -> str:
    kinds = griffe.ParameterKind
    stars = {kinds.var_positional: "*", kinds.var_keyword: "**"}.get(of.kind, "")  # type: ignore[arg-type]
    annotation = f": {of.annotation}" if of.annotation is not None else ""
    default = f" = {of.default}" if of.default is not None and not stars else ""
    return _short(f"{stars}{of.name}{annotation}{default}")


def _short(text: str) -> str:
    """Return it without modules, and arrays as every version of NumPy has them in the source."""
    text = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", text)
    return re.sub(r"ndarray\[(?:tuple\[Any, \.\.\.\]|Any), dtype\[Any\]\]", "NDArray[Any]", text)


def _members(found: griffe.Class, source: griffe.Class) -> Iterator[str]:
    """Methods as callers see them, attributes as the source has them, each if it is told of."""
    of = source.all_members if (is_clip := _is_clip(source)) else source.members
    for name, member in sorted(of.items()):
        each = _end(member)
        is_hidden = name.startswith("_") or "ClassVar" in str(getattr(each, "annotation", ""))
        if is_hidden or (is_clip and name != "apply" and not _is_field(each)):
            continue
        if isinstance(each, griffe.Function) and each.docstring:
            seen = found.members.get(name)
            yield from _signature(f".{name}", seen if isinstance(seen, griffe.Function) else each)
        elif isinstance(each, griffe.Attribute) and (
            "property" not in each.labels or each.docstring
        ):
            yield f".{name}: {_short(str(each.annotation))}" if each.annotation else f".{name}"


def _is_field(member: griffe.Object) -> bool:
    is_property = "property" in member.labels
    return isinstance(member, griffe.Attribute) and not is_property and bool(member.annotation)


# -- the command line --------------------------------------------------------------------------


def command_line() -> Iterator[str]:
    """Every command with its arguments and options, their values and defaults."""
    for name, command in COMMANDS.items():
        arguments = [
            each.metavar or str(each.name).upper()
            for each in command.params
            if isinstance(each, click.Argument)
        ]
        yield " ".join(["onnx-clip", name, *arguments])
        options = [each for each in command.params if isinstance(each, click.Option)]
        yield from sorted(f"    {_option(each)}" for each in options)


def _option(option: click.Option) -> str:
    info = option.to_info_dict()
    text = ", ".join(sorted([*option.opts, *option.secondary_opts], key=len))
    if not option.is_flag:
        choices = info["type"].get("choices")
        text += f" {'|'.join(choices) if choices else info['type']['name'].upper()}"
        text += f" = {info['default']}" if info["default"] not in (None, ()) else ""
    return text + (" (repeatable)" if option.multiple else "")


# -- files -------------------------------------------------------------------------------------


def rules() -> Iterator[str]:
    """The keys of a clip.toml, and the settings of each clip."""
    yield "[[rule]]"
    settings = {name for clip in CLIPS.values() for name in clip.described()}
    yield from (f"    {key}" for key in keys_of_a_rule() if key not in settings)
    for name, clip in CLIPS.items():
        yield f'    clip = "{name}": {", ".join(clip.described())}'
    yield "[optimizer_ops]"
    yield '    "DOMAIN::OPERATOR": parameter, gradient'


# -- JSON --------------------------------------------------------------------------------------

NAMES = {"answers", "carried", "named", "operators", "optimizer_ops", "percentiles", "renamed"}
"""Objects whose keys are names or numbers from the model or the call."""
SHARED = {
    "models[]": "",
    "verification": "onnx-clip verify --json",
    **dict.fromkeys(("record", "step", "micro-batch", "undone[]"), "clips that a model has"),
    **dict.fromkeys(("clip", "clips[]"), "a clip"),
    **dict.fromkeys(("questions[]", "uncovered[]"), "a parameter that is not clipped"),
}
"""Objects that stand in several places: under which title they are listed; "" is the same."""
CALLS = {
    "rewrite": (
        "rewrite sgd.onnx -o {to}/a.onnx --threshold-input most --emit norm --verify --slopes off",
        "rewrite adam.onnx -o {to}/b.onnx --clip-norm 1 --ord 1 --axes 0 --dry-run",
        "rewrite sgd.onnx -o {to}/l.onnx --per-sample --need-clip W --html {to}/page.html",
        "rewrite sgd.onnx -o {to}/m.onnx --clip rms --threshold 1",
        "rewrite sgd.onnx -o {to}/c.onnx --rules ../chain.toml",
        "rewrite loss_scaling.onnx -o {to}/k.onnx --map {to}/map.json --loss-scale loss_scale",
        "rewrite adam.onnx -o {to}/d.onnx --clip value --max 1 --min -2",
        "rewrite sgd.onnx -o {to}/e.onnx --clip adaptive --clipping 0.1 --eps 0.1",
        "rewrite one_unknown.onnx -o {to}/f.onnx --partial --no-run",
        "rewrite early_update.onnx -o {to}/h.onnx --clip global-norm --clip-norm 1",
        "rewrite penalty.onnx -o {to}/i.onnx",
        "rewrite unknown_operator.onnx -o {to}/j.onnx --optimizer-op "
        "vendor::SGD:parameter=0,gradient=1 --layout cuda",
        "rewrite one_unknown.onnx -o {to}/g.onnx --no-run",
        "rewrite sgd.onnx missing.onnx -o {to}",
        "rewrite artifacts -o {to}/artifacts",
    ),
    "inspect": (
        "inspect {to}/a.onnx",
        "inspect {to}/c.onnx",
        "inspect {to}/f.onnx",
        "inspect missing.onnx",
        "inspect {to}/i.onnx",
        "inspect {to}/j.onnx",
        "inspect one_unknown.onnx adam.onnx",
        "inspect gradients.onnx",
        "inspect {to}/artifacts",
    ),
    "inspect --explain": ("inspect one_unknown.onnx --explain W", "inspect sgd.onnx --explain W"),
    "verify": ("verify sgd.onnx {to}/a.onnx --slopes off", "verify sgd.onnx {to}/k.onnx"),
    "strip": ("strip {to}/a.onnx -o {to}/s.onnx", "strip {to}/artifacts -o {to}/back"),
    "extract": (
        "extract sgd.onnx -o {to}/x.onnx",
        "extract sgd.onnx -o {to}/y.onnx --phase norms --clip global-norm --clip-norm 1",
    ),
    "watch": ("watch sgd.onnx --feeds {to}/feeds.npz --steps 2 -o {to}/norms.jsonl",),
    "watch --dry-run": ("watch sgd.onnx --feeds {to}/feeds.npz --dry-run",),
    "suggest": ("suggest {to}/norms.jsonl", "suggest {to}/norms.jsonl --each global"),
}
"""Calls that between them print every key that there is, in an order in which they can be made."""

Keys = dict[str, dict[str, set[str]]]
"""By title and path, the types that were seen."""


def json_output() -> Iterator[str]:
    """The keys of what `--json` prints, of the files of `watch`, and of a record in a model."""
    found: Keys = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(EARLIER / "originals"):
        feeds = {"x": np.ones((2, 4), np.float32), "t": np.ones((2, 3), np.float32)}
        feeds |= {"W": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)}
        np.savez(Path(folder) / "feeds.npz", **feeds)
        named = {"W_grad_scaled": "W", "b_grad_scaled": None}
        (Path(folder) / "map.json").write_text(json.dumps(named), encoding="utf-8")
        for title, calls in CALLS.items():
            for call in calls:
                printed = _printed(call.format(to=folder).split())
                _collect(printed, f"onnx-clip {title} --json", "", found)
        for path in sorted(Path(folder).rglob("*.onnx")):
            for entry in onnx.load(path).metadata_props:
                if entry.key == KEY:
                    _collect(json.loads(entry.value), f"the metadata entry {KEY}", "", found)
        lines = (Path(folder) / "norms.jsonl").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        _collect(
            json.loads(line), f"norms.jsonl, {'other lines' if number else 'line 1'}", "", found
        )
    for title in sorted(found):
        yield title
        for path, types in sorted(found[title].items()):
            is_told = f"{path}[]" in found[title] or any(
                p.startswith(f"{path}.") for p in found[title]
            )
            if path and (types > {"array"} or types > {"object"} or not is_told):
                yield f"    {path}: {' | '.join(sorted(types))}"


def _printed(arguments: Sequence[str]) -> Any:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        main([*arguments, "--json"])
    return json.loads(printed.getvalue())


def _collect(value: Any, title: str, path: str, found: Keys) -> None:
    """Note the types of a value and of all in it, each under its title and path."""
    key = path.rpartition(".")[2]
    shared = SHARED.get(key) if isinstance(value, dict) and path else None
    if shared is not None:
        found.setdefault(title, {}).setdefault(path, set()).add(shared or "the same")
        title, path = shared or title, ""
    else:
        found.setdefault(title, {}).setdefault(path, set()).add(_TYPES[type(value)])
    if isinstance(value, list):
        for each in value:
            _collect(each, title, f"{path}[]", found)
    elif isinstance(value, dict):
        is_named = key in {*NAMES, "NAME"}
        for name, each in value.items():
            _collect(each, title, f"{path}.{'NAME' if is_named else name}".lstrip("."), found)


_TYPES = {
    bool: "boolean",
    dict: "object",
    float: "number",
    int: "number",
    list: "array",
    str: "string",
    type(None): "null",
}


# -- the listing -------------------------------------------------------------------------------


def surface() -> str:
    """All of it, as the listing holds it."""
    parts = {
        "Python: onnx_clip_pass": python(),
        "Command line": command_line(),
        "clip.toml": rules(),
        "JSON": json_output(),
    }
    return (
        "\n\n".join("\n".join([title, "=" * len(title), *lines]) for title, lines in parts.items())
        + "\n"
    )


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"expected: {WRITE}")
    LISTING.write_text(surface(), encoding="utf-8")
