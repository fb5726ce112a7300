"""The process: what an interrupt, a full disk and a fault of our own look like from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import onnx_clip_pass
from onnx_clip_pass import cli

SEED = Path(__file__).parent.parent / "models" / "seed" / "train_step.onnx"


def run(code: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, **options)


def test_every_exported_name_is_there_and_listed():
    assert all(getattr(onnx_clip_pass, name) is not None for name in onnx_clip_pass.__all__)
    assert set(onnx_clip_pass.__all__) <= set(dir(onnx_clip_pass))
    with pytest.raises(AttributeError, match="has no attribute 'clip_grads'"):
        onnx_clip_pass.clip_grads  # noqa: B018


BEFORE_ALL = ["onnx_clip_pass.cli", "click", "numpy", "onnx", "google.protobuf", "rich"]


@pytest.mark.parametrize("module", BEFORE_ALL)
@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("KeyboardInterrupt", 130, "interrupted\n"),
        ("MemoryError", 3, "error: there is not enough memory to start\n"),
        ("ImportError('cut off')", 3, "error: onnx-clip cannot start: ImportError: cut off\n"),
        ("SyntaxError('torn')", 3, "error: onnx-clip cannot start: SyntaxError: torn\n"),
    ],
)
def test_whatever_goes_wrong_while_starting_is_one_line(module, raised, code, said):
    source = (
        "import sys\n"
        "class Breaking:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: raise {raised}\n"
        "sys.meta_path.insert(0, Breaking())\n"
        "from onnx_clip_pass.__main__ import run; sys.exit(run())"
    )
    done = run(source, "rewrite", "--help")
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.skipif(os.name != "posix", reason="other systems have other signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("module", BEFORE_ALL)
def test_a_signal_while_starting_raises_nothing_within_what_is_imported(name, module):
    """Modules in C++ crash where an exception comes up in the midst of their making."""
    source = (
        "import os, signal, sys\n"
        f"signal.signal(signal.{name}, signal.SIG_DFL)  # whatever the tests are run by\n"
        "class Signalling:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n"
        f"            os.kill(os.getpid(), signal.{name})\n"
        "            print('went on')\n"
        "sys.meta_path.insert(0, Signalling())\n"
        "from onnx_clip_pass.__main__ import run; sys.exit(run())"
    )
    done = run(source, "rewrite", "--help", stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr, done.stdout) == (130, "interrupted\n", "")


def test_hardly_anything_is_imported_before_the_process_is_set_up():
    """An interrupt before that is none that Python lets anyone catch."""
    code = (
        "import sys; before = set(sys.modules); import onnx_clip_pass.__main__\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    assert run(code, stdout=subprocess.PIPE).stdout.split() == [
        "__future__",
        "onnx_clip_pass",
        "onnx_clip_pass.__main__",
        "onnx_clip_pass._version",
    ]


@pytest.mark.skipif(os.name != "posix", reason="other systems have other signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_leaves_no_temporary_file(name, tmp_path):
    model = tmp_path / "step.onnx"
    model.write_bytes(SEED.read_bytes())
    at_first = "default_int_handler" if name == "SIGINT" else "SIG_DFL"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        f"signal.signal(signal.{name}, signal.{at_first})  # whatever the tests are run by\n"
        f"Path.replace = lambda *_: os.kill(os.getpid(), signal.{name})\n"
        "from onnx_clip_pass.__main__ import run; sys.exit(run())"
    )
    done = run(code, "rewrite", str(model))
    assert done.returncode == 130
    assert done.stderr.strip() == "interrupted; no file is half written"
    assert [path.name for path in tmp_path.iterdir()] == ["step.onnx"]


@pytest.mark.skipif(os.name != "posix", reason="other systems have no SIGHUP")
def test_under_nohup_a_lost_terminal_is_no_interrupt(tmp_path):
    code = (
        "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "import onnx_clip_pass.__main__ as process; process.run()\n"
        "sys.exit(signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN)"
    )
    assert run(code, "--version", stdout=subprocess.DEVNULL).returncode == 0


def test_the_python_interface_leaves_signals_alone(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["rewrite", str(SEED), "-o", str(tmp_path / "out.onnx")]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["inspect"], ["inspect", "--json"], ["--help"]])
def test_output_that_cannot_be_written_is_one_message(arguments):
    command = [sys.executable, "-m", "onnx_clip_pass", *arguments]
    command += [str(SEED)] if arguments != ["--help"] else []
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: cannot write to standard output: No space left on device"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_messages_that_cannot_be_written_do_not_look_like_a_failed_check(tmp_path):
    for arguments in (["rewrite", str(SEED), "-o", str(tmp_path / "o.onnx")], ["rewrite", "none"]):
        command = [sys.executable, "-m", "onnx_clip_pass", *arguments]
        with Path("/dev/full").open("w") as full:
            assert subprocess.run(command, stdout=full, stderr=full).returncode == 2
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=full)
            assert done.returncode == 2


GONE = (
    "import os, sys; read, write = os.pipe(); os.close(read); os.dup2(write, {stream})\n"
    "from onnx_clip_pass.__main__ import run; sys.exit(run())"
)


@pytest.mark.parametrize(
    "arguments", [["inspect", str(SEED)], ["inspect", str(SEED), "--json"], ["--help"]]
)
def test_a_reader_that_has_gone_is_no_bad_input(arguments):
    done = run(GONE.format(stream=1), *arguments)
    assert (done.returncode, done.stderr) == (141, "")


def test_bad_input_is_told_though_the_reader_of_the_output_has_gone():
    done = run(GONE.format(stream=1), "inspect", "none.onnx", "--json")
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot read 'none.onnx'")
    assert len(done.stderr.splitlines()) == 1


def test_messages_that_nobody_reads_stop_nothing_else(tmp_path):
    out = tmp_path / "out.onnx"
    done = run(GONE.format(stream=2), "rewrite", str(SEED), "-o", str(out), stdout=subprocess.PIPE)
    assert done.returncode in (0, 141)
    assert onnx.load(out).metadata_props


def test_a_name_that_the_console_cannot_write_is_written_all_the_same(tmp_path):
    def port(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])

    node = helper.make_node("Neg", ["x"], ["∇W"])
    graph = helper.make_graph([node], "step", [port("x"), port("W")], [port("∇W")])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    code = "from onnx_clip_pass.__main__ import run; raise SystemExit(run())"
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = run(code, "inspect", str(path), env=ascii_only, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u2207W" in done.stdout


def test_a_fault_of_our_own_has_an_exit_code_of_its_own(monkeypatch, capsys):
    def fail(*_, **__):
        raise ZeroDivisionError("unthought of")

    monkeypatch.setattr("onnx_clip_pass.cli.inspecting.inspect_model", fail)
    assert cli.main(["inspect", str(SEED)]) == 3
    err = capsys.readouterr().err
    assert "ZeroDivisionError: unthought of" in err
    assert "fault of onnx-clip itself; please report it with these lines" in err


def test_a_lack_of_memory_is_told(monkeypatch, capsys):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("onnx_clip_pass.cli.inspecting.inspect_model", fail)
    assert cli.main(["inspect", str(SEED)]) == 2
    assert capsys.readouterr().err == "error: there is not enough memory for this\n"


@pytest.mark.parametrize("size", ["-1", "9" * 14, "9" * 5000, "x", ""])
@pytest.mark.parametrize("command", ["verify", "inspect", "rewrite"])
def test_a_dimension_that_no_array_can_have_is_one_message(command, size, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="it runs the model")
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 2] W, float[2, N] x) => (float[2, 2] W_grad, float[2, N] y) {
            y = MatMul(W, x)
            W_grad = Mul(W, W)
        }"""
    model = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(text), model)
    assert cli.main(["rewrite", str(model), "-o", str(tmp_path / "c.onnx")]) == 0
    capsys.readouterr()
    arguments = {
        "verify": ["verify", str(model), str(tmp_path / "c.onnx")],
        "inspect": ["inspect", str(model), "--probe"],
        "rewrite": ["rewrite", str(model), "-o", str(tmp_path / "d.onnx"), "--verify"],
    }[command]
    assert cli.main([*arguments, "--dim", f"N={size}"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "--dim" in err


@pytest.mark.parametrize(
    "arguments", [["verify", "a", "b"], ["inspect", "a", "--probe"], ["rewrite", "a", "--verify"]]
)
def test_a_negative_seed_is_refused(arguments, capsys):
    assert cli.main([*arguments, "--seed", "-5"]) == 2
    assert "expected a whole number, 0 or more, not '-5'" in capsys.readouterr().err


def test_the_help_says_what_each_command_does_in_whole_words(capsys):
    assert cli.main(["--help"]) == 0
    assert "..." not in capsys.readouterr().out.split("Commands:")[1]
