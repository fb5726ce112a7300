"""Help of the command line: sections, widths, and examples that can be given as they stand."""

from __future__ import annotations

import shlex

import click
import pytest

from onnx_clip_pass.cli import cli, main

COMMANDS = list(cli.commands)


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([command, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_a_section(command, capsys):
    lines = help_of(command, capsys).splitlines()
    assert "Other:" not in lines
    lines = lines[lines.index("  Examples:") :]
    options = [param.opts[-1] for param in cli.commands[command].params if param.opts[0][0] == "-"]
    shown = [line.split()[0].strip(",") for line in lines if line.startswith("  -")]
    assert len(shown) == len(options) + 1  # --help
    assert lines.index("Output:") > len(lines) - 20


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("command", [*COMMANDS, None])
def test_help_fits_the_terminal(command, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([command, "--help"] if command else ["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= max(columns, 80)  # examples are not broken
    assert all(len(line) <= columns for line in lines if not line.startswith("    onnx-clip"))


@pytest.mark.parametrize("command", [*COMMANDS, None])
def test_help_has_examples_that_the_command_takes(command, capsys):
    lines = cli.get_help(click.Context(cli)) if command is None else help_of(command, capsys)
    examples = [
        shlex.split(line, comments=True)
        for line in lines.splitlines()
        if line.startswith("    onnx-clip ")
    ]
    assert len(examples) >= 2
    assert command in (None, *(name for _, name, *_ in examples))
    for _, name, *arguments in examples:
        if arguments != ["--help"]:
            cli.commands[name].make_context(name, arguments, resilient_parsing=False)


def test_commands_are_in_the_order_of_need(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out.partition("Commands:")[2]
    assert [line.split()[0] for line in text.splitlines() if line] == COMMANDS
    assert COMMANDS[:3] == ["rewrite", "inspect", "verify"]
