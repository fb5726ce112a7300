"""The options that say what clipping means: a clip with its settings, or a file of rules.

Those of the clips are made from the descriptions of their settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from onnx_clip_pass.arguments import number_in, whole_in
from onnx_clip_pass.cli.options import NUMBER, PATH, given_options
from onnx_clip_pass.clips import CLIPS, setting_names
from onnx_clip_pass.clips.settings import AXES, FLAG, Number, SettingType
from onnx_clip_pass.errors import shown
from onnx_clip_pass.files import read_map
from onnx_clip_pass.rewrite import ClipOrRules, GradientNames
from onnx_clip_pass.rules import load_rules

__all__ = ["ClipOptions", "clip_options", "gradient_options", "named_gradients"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_DEFAULT_CLIP = "norm"


@dataclass(frozen=True, slots=True)
class ClipOptions:
    """What to do to which gradients: the values of the options of `clip_options`."""

    kind: str | None
    settings: dict[str, Any]
    rules: Path | None
    need_clip: tuple[str, ...]
    skip: tuple[str, ...]
    norm_precision: Any
    nonfinite: Any
    threshold_input: str | None
    loss_scale: str
    emit: str | None
    emit_as: Any
    measure_only: bool

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> ClipOptions:
        """Take them out of all options of a command."""
        values = {name: options[name] for name in setting_names()}
        given = {  # 0 is given, and refused by the clip
            name: value
            for name, value in values.items()
            if value is not None and value is not False
        }
        return cls(
            settings=given,
            **{name: options[name] for name in cls.__slots__[:1] + cls.__slots__[2:]},
        )

    def __post_init__(self) -> None:
        if self.emit is None and given_options("emit_as"):
            raise click.UsageError("--emit-as says how to emit: add --emit")

    def clips(self) -> ClipOrRules:
        """The clip, or the rules.

        Raises:
            click.UsageError: options that do not go together.
            OnnxClipError: a setting, or the file of rules, is at fault.
        """
        given = dict(self.settings)
        if self.rules is not None:
            extra = [_spelled(name) for name in given]
            extra += ["--clip"] if self.kind else []
            extra += ["--need-clip"] if self.need_clip else []
            if extra:
                raise click.UsageError(f"--rules says it all: not with {', '.join(extra)}")
            return load_rules(self.rules)
        kind = self.kind or _DEFAULT_CLIP
        own = CLIPS[kind].described()
        foreign = [_spelled(name) for name in given if name not in own]
        if foreign:
            taken = ", ".join(map(_spelled, own))
            raise click.UsageError(f"--clip {kind} takes {taken}, not {', '.join(foreign)}")
        for name, setting in own.items():
            if setting.is_needed and given.setdefault(name, setting.option_default) is None:
                raise click.UsageError(f"--clip {kind} needs {_spelled(name)}")
        made: Any = CLIPS[kind]
        return made(**given, need_clip=list(self.need_clip) or None)  # type: ignore[no-any-return]

    def arguments(self) -> dict[str, Any]:
        """The rest, as arguments of `clip_gradients_file`."""
        return {
            "skip": self.skip,
            "norm_precision": self.norm_precision,
            "nonfinite": self.nonfinite,
            "threshold_input": self.threshold_input,
            "loss_scale": _number_or_name(self.loss_scale),
            "emit": () if self.emit is None else _measures(self.emit),
            "emit_as": self.emit_as,
            "measure_only": self.measure_only,
        }


def _spelled(name: str) -> str:
    return "--" + name.replace("_", "-")


def _joined(_context: click.Context, _option: click.Parameter, texts: Sequence[str]) -> str | None:
    """A list as one text, whether commas or the option itself, again, part it; None if empty."""
    return ",".join(texts) if texts else None


def _axes(
    _context: click.Context, _option: click.Parameter, texts: Sequence[str]
) -> list[int] | None:
    text = ",".join(texts)
    try:
        return [whole_in(part) for part in text.split(",")] if texts else None
    except ValueError:
        raise click.UsageError(
            f"--axes: expected axes such as 0 or 0,2, not {shown(text)}"
        ) from None


def _form(type: SettingType) -> dict[str, Any]:
    """How an option is declared for a setting of this type; text if it is no other."""
    if isinstance(type, Number):
        return {"type": NUMBER}
    if type == FLAG:
        return {"is_flag": True}
    if type == AXES:
        return {"multiple": True, "callback": _axes, "metavar": "AXES"}
    return {"metavar": "NAME"}


def _setting_options() -> list[Callable[[_Command], _Command]]:
    """An option for each setting of any clip; its help says which clips take it."""
    options = []
    for name in setting_names():
        takers: dict[str, list[str]] = {}
        for kind, clip in CLIPS.items():
            if name in clip.described():
                setting = clip.described()[name]
                default = setting.option_default if setting.is_needed else setting.default
                shown = f"{default:g}" if isinstance(default, float) else default
                text = f"{setting.help} [default: {shown}]" if shown else setting.help
                takers.setdefault(text, []).append(kind)
        words = " ".join(f"{', '.join(kinds)}: {text}" for text, kinds in takers.items())
        options.append(click.option(_spelled(name), name, help=words, **_form(setting.type)))
    return options


def _measures(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise click.UsageError(
            f"--emit: expected norm, scale, clipped, or several, not {shown(text)}"
        )
    return words


def _number_or_name(text: str) -> float | str:
    try:
        return number_in(text)
    except ValueError:
        return text


def gradient_options(command: _Command) -> _Command:
    """Add the options that name gradients outright."""
    for option in (
        click.option(
            "--map",
            "map_file",
            type=PATH,
            metavar="FILE",
            help="JSON object, gradient name to parameter name; nothing is searched.",
        ),
        click.option(
            "--gradient",
            "names",
            multiple=True,
            metavar="NAME",
            help="This value is a gradient; nothing is searched. Repeatable.",
        ),
    ):
        command = option(command)
    return command


def named_gradients(names: Sequence[str], map_file: Path | None) -> GradientNames:
    """What the options of `gradient_options` say; None if nothing."""
    if names and map_file is not None:
        raise click.UsageError("--gradient and --map exclude each other: put the names in the map")
    return read_map(map_file) if map_file is not None else list(names) or None


def clip_options(command: _Command) -> _Command:
    """Add the options that say what is clipped, and how."""
    for option in reversed(_DECLARED):
        command = option(command)
    return command


_DECLARED = (
    click.option(
        "--clip",
        "kind",
        type=click.Choice(list(CLIPS)),
        help=" ".join(f"{name}: {clip.summary}." for name, clip in CLIPS.items())
        + f" [default: {_DEFAULT_CLIP}]",
    ),
    *_setting_options(),
    click.option(
        "--rules",
        type=PATH,
        metavar="FILE",
        help="A clip.toml with rules, of which the first that matches a gradient is taken.",
    ),
    click.option(
        "--need-clip",
        multiple=True,
        metavar="PATTERN",
        help="Clip only these: a glob on the parameter's or gradient's name, or re:REGEX. "
        "Repeatable.",
    ),
    click.option("--skip", multiple=True, metavar="PATTERN", help="Leave these out. Repeatable."),
    click.option(
        "--norm-precision",
        type=click.Choice(["auto", "plain", "wide"]),
        default="auto",
        show_default=True,
        help="plain: one reduction. wide: all in float64. auto: plain where its error is below "
        "1e-5.",
    ),
    click.option(
        "--nonfinite",
        type=click.Choice(["propagate", "zero", "keep"]),
        default="propagate",
        show_default=True,
        help="A gradient with nan or inf: as the formula has it, all zeros, or as it is.",
    ),
    click.option(
        "--threshold-input",
        metavar="NAME",
        help="Make the threshold an input of this name, with the number as its default.",
    ),
    click.option(
        "--loss-scale",
        metavar="VALUE",
        default="1",
        show_default=True,
        help="What the gradients are multiplied by: a number, or the name of a value. Thresholds "
        "are for the unscaled ones.",
    ),
    click.option(
        "--emit",
        multiple=True,
        callback=_joined,
        metavar="WHAT",
        help="Add outputs: norm (before clipping), scale, clipped, or several: norm,scale",
    ),
    click.option(
        "--emit-as",
        type=click.Choice(["each", "vector"]),
        default="each",
        show_default=True,
        help="A scalar for each gradient, or one vector for all.",
    ),
    click.option("--measure-only", is_flag=True, help="Emit and clip nothing."),
)
