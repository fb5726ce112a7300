"""The options that say what clipping means: a clip with its settings, or a file of rules.

They are made from what describes them: each clip its settings, and `Options` the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from onnx_clip_pass.arguments import whole_in
from onnx_clip_pass.cli.options import (
    NUMBER,
    PATH,
    WHOLE,
    OptionGroup,
    given_options,
    option,
    options_of,
    spelled,
    take_options,
)
from onnx_clip_pass.clips import CLIPS, setting_names
from onnx_clip_pass.clips.settings import AXES, FLAG, Count, Number, Percent, SettingType
from onnx_clip_pass.errors import shown
from onnx_clip_pass.files import read_map
from onnx_clip_pass.rewrite import ClipOrRules, GradientNames, Options
from onnx_clip_pass.rules import load_rules

__all__ = ["ClipOptions", "GradientOptions", "clip_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_DEFAULT_CLIP = "norm"


@dataclass(frozen=True, slots=True)
class ClipOptions:
    """The values of the options of `clip_options`: a clip or rules, and the further options.

    `settings` are those of the clip that are given, `arguments` the rest for `clip_gradients_file`.
    """

    kind: str | None
    settings: dict[str, Any]
    rules: Path | None
    need_clip: tuple[str, ...]
    arguments: dict[str, Any]

    @classmethod
    def of(cls, options: dict[str, Any]) -> ClipOptions:
        """Take them out of all options of a command."""
        if not options["emit"] and given_options("emit_as"):
            raise click.UsageError("--emit-as says how to emit: add --emit")
        settings = {name: options[name] for name in setting_names()}
        return cls(
            options["kind"],
            # 0 is given, and refused by the clip
            {n: value for n, value in settings.items() if value is not None and value is not False},
            options["rules"],
            options["need_clip"],
            take_options(Options, options),
        )

    def clips(self) -> ClipOrRules:
        """The clip, or the rules.

        Raises:
            click.UsageError: options that do not go together.
            OnnxClipError: a setting, or the file of rules, is at fault.
        """
        given = dict(self.settings)
        if self.rules is not None:
            extra = [spelled(name) for name in given]
            extra += ["--clip"] if self.kind else []
            extra += ["--need-clip"] if self.need_clip else []
            if extra:
                raise click.UsageError(f"--rules says it all: not with {', '.join(extra)}")
            return load_rules(self.rules)
        kind = self.kind or _DEFAULT_CLIP
        own = CLIPS[kind].described()
        foreign = [spelled(name) for name in given if name not in own]
        if foreign:
            taken = ", ".join(map(spelled, own))
            raise click.UsageError(f"--clip {kind} takes {taken}, not {', '.join(foreign)}")
        for name, setting in own.items():
            if setting.is_needed and given.setdefault(name, setting.option_default) is None:
                raise click.UsageError(f"--clip {kind} needs {spelled(name)}")
        made: Any = CLIPS[kind]
        return made(**given, need_clip=list(self.need_clip) or None)  # type: ignore[no-any-return]


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
    """The declaration of an option for a setting of this type; text if it is no other."""
    if isinstance(type, Number | Percent):
        return {"type": NUMBER}
    if isinstance(type, Count):
        return {"type": WHOLE}
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
        options.append(click.option(spelled(name), name, help=words, **_form(setting.type)))
    return options


class GradientOptions(OptionGroup):
    """The gradients, named outright."""

    names: tuple[str, ...] = option(
        "--gradient",
        multiple=True,
        metavar="NAME",
        help="This value is a gradient; nothing is searched. Repeatable.",
    )
    map_file: Path | None = option(
        "--map",
        type=PATH,
        metavar="FILE",
        help="JSON object, gradient name to parameter name; nothing is searched.",
    )

    @property
    def given(self) -> list[str]:
        """Those that are given, as they are spelled."""
        return ["--gradient"] * bool(self.names) + ["--map"] * (self.map_file is not None)

    def read(self) -> GradientNames:
        """The gradients by name; None if none is given."""
        if len(self.given) > 1:
            raise click.UsageError(
                "--gradient and --map exclude each other: put the names in the map"
            )
        return read_map(self.map_file) if self.map_file is not None else list(self.names) or None


def clip_options(command: _Command) -> _Command:
    """Add the options that say what is clipped, and how."""
    declared = [
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
    ]
    command = options_of(Options)(command)
    for add in reversed(declared):
        command = add(command)
    return command
