"""Progress: told to a callback, shown by a bar where somebody watches, and by nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest

from onnx_clip_pass import (
    GradientClipByNorm,
    OnnxClipError,
    Progress,
    ProgressBar,
    clip_gradients_file,
    plan_clips,
    probe_gradients,
    verify,
)
from onnx_clip_pass import progress as module

SEED = Path(__file__).parent.parent / "models" / "seed" / "train_step.onnx"
TORCH = SEED.parent.parent / "torch_grad" / "mlp_mse.onnx"
ONE = GradientClipByNorm(1.0)


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress("reading"), "reading"),
        (Progress("writing m", 1_500_000, 3_000_000, "bytes"), "writing m: 1.5 of 3.0 MB"),
        (Progress("probing", 3, 1200, "parameters"), "probing: 3 of 1,200 parameters"),
        (Progress("writing \x1b[2J", 0, 2), "writing \\x1b[2J: 0 of 2"),
    ],
    ids=["nothing counted", "bytes", "parameters", "a hostile name"],
)
def test_it_is_told_in_words(progress: Progress, text: str):
    assert str(progress) == text


@pytest.mark.parametrize("wrong", [1, "yes", []], ids=repr)
def test_what_is_no_callback_is_refused_before_anything_is_done(wrong: Any, tmp_path: Path):
    target = tmp_path / "t.onnx"
    for use in (
        lambda: clip_gradients_file(tmp_path / "missing.onnx", target, ONE, progress=wrong),
        lambda: plan_clips(SEED, ONE).save(target, progress=wrong),
        lambda: verify(tmp_path / "missing.onnx", SEED, progress=wrong),
        lambda: probe_gradients(tmp_path / "missing.onnx", progress=wrong),
    ):
        with pytest.raises(OnnxClipError, match="progress must be True or a callback, not"):
            use()
    assert not target.exists()


def test_verifying_tells_what_it_does(tmp_path: Path):
    pytest.importorskip("onnxruntime", reason="verify runs the model")
    told: list[Progress] = []
    plan_clips(SEED, ONE).save(tmp_path / "c.onnx")
    assert verify(SEED, tmp_path / "c.onnx", progress=told.append)
    doing = [each.doing for each in told]
    assert doing[:2] == ["reading both models", "running both models"]
    assert "running both models with gradients scaled up" in doing
    assert any(each.startswith("trying the clips of the main graph alone") for each in doing)
    assert any(each.startswith("taking slopes of ") for each in doing)


def test_what_a_callback_raises_ends_the_work(tmp_path: Path):
    pytest.importorskip("onnxruntime", reason="a probe runs the model")

    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe_gradients(onnx.load(TORCH), progress=stop)
    with pytest.raises(KeyboardInterrupt):
        clip_gradients_file(SEED, tmp_path / "t.onnx", ONE, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_where_nobody_watches_there_is_no_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module.threading, "Timer", AtOnce)
    clip_gradients_file(SEED, tmp_path / "t.onnx", ONE, progress=True)
    assert capsys.readouterr() == ("", "")


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


class AtOnce:
    """A timer that has run out when it starts."""

    def __init__(self, _: float, act: Callable[[], None]) -> None:
        self.act = act
        self.daemon = False

    def start(self) -> None:
        self.act()

    def cancel(self) -> None:
        pass


class Never(AtOnce):
    """A timer that does not run out."""

    def start(self) -> None:
        pass


def test_in_a_terminal_there_is_a_bar_that_goes_in_the_end(monkeypatch: pytest.MonkeyPatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(module.threading, "Timer", AtOnce)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    with ProgressBar() as bar:
        bar(Progress("nothing counted"))
        bar(Progress("probing [bold]m\x1b[2J[/bold]", 4, 12, "parameters"))
    shown = screen.getvalue()
    assert "probing [bold]m\\x1b[2J[/bold]" in shown
    assert "4 of 12 parameters" in shown
    assert shown.endswith("\x1b[2K")  # the line is erased


def test_work_that_is_done_at_once_shows_no_bar(monkeypatch: pytest.MonkeyPatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(module.threading, "Timer", Never)
    with ProgressBar() as bar:
        bar(Progress("reading"))
    bar._appear()  # of a timer that was too late to be stopped
    assert screen.getvalue() == ""


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The successive contents of the output of a notebook's cell."""
    pages: list[str] = []
    handle = SimpleNamespace(update=pages.append)

    def display(page: str, *, display_id: bool) -> SimpleNamespace:
        assert display_id
        pages.append(page)
        return handle

    shell, displaying = ModuleType("IPython"), ModuleType("IPython.display")
    shell.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    displaying.HTML, displaying.display = str, display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", displaying)
    return pages


def test_in_a_notebook_there_is_a_bar_in_the_cell_that_goes_in_the_end(cell: list[str]):
    with ProgressBar() as bar:
        bar(Progress("probing <b>m</b>", 3, 12, "parameters"))
        bar(Progress("reading"))
    assert cell == [
        "",
        '<progress max="100" value="25"></progress> '
        "probing &lt;b&gt;m&lt;/b&gt;: 3 of 12 parameters",
        "<progress></progress> reading",
        "",
    ]


def test_a_notebook_is_told_of_each_hundredth_and_not_of_each_block(cell: list[str]):
    with ProgressBar() as bar:
        for done in range(10_001):
            bar(Progress("writing m", done, 10_000, "bytes"))
    assert len(cell) == 1 + 101 + 1
