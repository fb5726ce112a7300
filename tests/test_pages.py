"""Pages as files: well-formed, complete, with every name as text, and loading nothing."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from pathlib import Path

import numpy as np
import onnx
import pytest
from html_pages import HOSTILE, Seen, many_rows, report, uncovered

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients_file, plan_clips
from onnx_clip_pass.cli import main
from onnx_clip_pass.inspection import Inspection, inspect_model
from onnx_clip_pass.monitoring import Norms
from onnx_clip_pass.monitoring.recording import Head
from onnx_clip_pass.monitoring.recording import Row as NormRow
from onnx_clip_pass.page import Column, Table, count, element, joined, number, shape, visible
from onnx_clip_pass.reports import (
    check_page_target,
    inspection_page,
    page_of,
    rewrite_page,
    verification_page,
    write_page,
)
from onnx_clip_pass.verification.report import GradientCheck, OutputCheck, Verification

MODELS = Path(__file__).parent.parent / "models"
SEED = MODELS / "seed" / "train_step.onnx"
LOADING = {"link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "source"}
NAMED = {name: visible(f"{name}_grad") for name in HOSTILE}


def hostile_pages() -> dict[str, str]:
    """Each kind of page, with hostile names wherever a name can be."""
    found = report(
        HOSTILE, uncovered=tuple(map(uncovered, HOSTILE)), warnings=tuple(HOSTILE), replaced=True
    )
    checks = [
        GradientCheck(f"{name}_grad", name, name, name, 1.0, 1.0, 1.0, has_run=True, faults=[name])
        for name in HOSTILE
    ]
    outputs = [OutputCheck(name, True, name, faults=[name]) for name in HOSTILE]
    verified = Verification(checks, outputs, list(HOSTILE), list(HOSTILE))
    inspected = Inspection(
        tuple(row.gradient for row in found.rows), None, "\n".join(HOSTILE), found.uncovered,
        tuple(HOSTILE),
    )  # fmt: skip
    name = HOSTILE[0]
    return {
        "rewrite": rewrite_page(name, name, found, verified=verified, when=name),
        "verification": verification_page(name, name, verified),
        "inspection": inspection_page(name, inspected),
    }


@pytest.fixture(params=["rewrite", "verification", "inspection"])
def hostile(request: pytest.FixtureRequest) -> str:
    return hostile_pages()[request.param]


def test_hostile_names_are_text_and_nothing_else(hostile: str):
    seen = Seen.of(hostile)
    assert seen.faults == []
    assert seen.tags().isdisjoint(LOADING | {"b"})
    assert [tag for tag, _ in seen.elements if tag in ("script", "style")] == ["style", "script"]
    assert not any(name.startswith("on") for _, attrs in seen.elements for name in attrs)
    assert not any({"src", "href", "style"} & attrs.keys() for _, attrs in seen.elements)
    cells = {cell for row in seen.rows for cell in row}
    assert cells >= set(NAMED.values())


def test_no_name_turns_the_direction_of_writing_or_hides(hostile: str):
    assert not {"\u202e", "\u200b", "\ufeff", "\0"} & set(hostile)
    assert "\\u202egnp.exe" in hostile


def test_very_long_names_are_cut_in_the_middle(hostile: str):
    assert "a" * 1000 not in hostile
    assert "characters]" in hostile


def test_the_policy_allows_the_style_and_the_script_of_the_page_and_nothing_else(hostile: str):
    seen = Seen.of(hostile)
    (policy,) = (
        attrs["content"]
        for tag, attrs in seen.elements
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for kind in ("style", "script"):
        (text,) = re.findall(f"<{kind}>(.*?)</{kind}>", hostile, re.DOTALL)
        digest = b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert rules == {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'"}
    assert hostile.index("Content-Security-Policy") < hostile.index("<style>")


def test_a_page_names_no_address(hostile: str):
    own = re.sub(r'xmlns="http://www.w3.org/2000/svg"', "", hostile)
    assert "http://" not in own
    assert "https://" not in own
    assert "@import" not in own
    assert "url(" not in own


def test_every_row_is_on_the_page_with_what_is_known_of_it():
    found, verified = many_rows(300)
    seen = Seen.of(rewrite_page("a.onnx", "b.onnx", found, verified=verified))
    headings = next(row for row in seen.rows if row[0] == "gradient")
    rows = [row for row in seen.rows if row[0].endswith("_grad")]
    assert [row[0] for row in rows] == [row.gradient.name for row in found.rows]
    assert {len(row) for row in rows} == {len(headings)}
    first = dict(zip(headings, rows[11], strict=True))
    assert first["parameter"] == "encoder.layers.1.attention.o.weight"
    assert first["clip"] == "norm <= 1"
    assert first["rule"] == "2"
    assert first["verdict"] == "wrong"
    assert first["faults"] == "element 3 is 0.5, and the formula says 0.25"
    left = dict(zip(headings, rows[12], strict=True))
    assert left["clip"] == "not clipped"
    assert left["verdict"] == left["norm"] == ""


def text_of(page: str) -> str:
    return "\n".join(Seen.of(page).texts)


def test_the_first_line_says_what_was_done():
    found = report(["W", "b"])
    assert "Clipped all 2 gradients" in text_of(rewrite_page("a", "b", found))
    assert "Would clip all 2 gradients" in text_of(rewrite_page("a", None, found))
    assert "Nothing was written" in text_of(rewrite_page("a", None, found))
    left = report(["W"], uncovered=(uncovered("V"),))
    assert "Clipped the one gradient; 1 trained parameter not covered" in text_of(
        rewrite_page("a", "b", left)
    )
    _, verified = many_rows(20)
    assert "and verification finds it WRONG" in text_of(
        rewrite_page("a", "b", found, verified=verified)
    )
    verified.gradients[11].faults.clear()
    assert "and verified it" in text_of(rewrite_page("a", "b", found, verified=verified))


def test_what_is_not_covered_is_told_with_its_reason():
    page = rewrite_page("a", "b", report(["W"], uncovered=(uncovered("V"),)))
    assert ["V", "V_new = Sub(V, s)", "V, t", "of V"] in Seen.of(page).rows


def test_the_same_rewrite_gives_the_same_page():
    plans = [plan_clips(SEED, GradientClipByNorm(1.0)) for _ in range(2)]
    pages = [rewrite_page("a", None, plan.report) for plan in plans]
    assert pages[0] == pages[1]


def test_the_page_of_a_clipped_model_shows_its_record_and_its_nodes(tmp_path: Path):
    path = tmp_path / "clipped.onnx"
    clip_gradients_file(SEED, path, GradientClipByNorm(0.5))
    assert main(["inspect", str(path), "--html", str(tmp_path / "page.html")]) == 0
    text = text_of((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "2 gradients, all clipped" in text
    assert "norm <= 0.5" in text
    assert "8 nodes and 2 constants" in text
    assert "ReduceL2" in text


def test_the_page_of_a_model_that_is_not_clipped_names_what_is_carried():
    path = MODELS / "optimizers" / "batch_norm_statistics.onnx"
    found = inspect_model(path)
    assert found.carried
    text = text_of(inspection_page("a.onnx", found))
    assert "Not clipped by onnx-clip." in text
    assert "Carried from step to step, and not trained" in text
    assert set(found.carried) <= set(Seen.of(inspection_page("a.onnx", found)).texts)


# -- the command line ------------------------------------------------------------------------------


def test_rewrite_writes_a_page_beside_the_model(seed: Path, capsys: pytest.CaptureFixture[str]):
    page = seed.parent / "report.html"
    assert main(["rewrite", str(seed), "--html", str(page)]) == 0
    assert f"wrote {page}" in capsys.readouterr().err
    text = text_of(page.read_text(encoding="utf-8"))
    assert "Clipped all 2 gradients" in text
    assert str(seed.with_name("step.clipped.onnx")) in text


def test_a_dry_run_writes_the_page_and_no_model(seed: Path):
    page = seed.parent / "report.html"
    assert main(["rewrite", str(seed), "--dry-run", "--html", str(page)]) == 0
    assert sorted(seed.parent.iterdir()) == [page, seed]
    assert "ReduceL2" in text_of(page.read_text(encoding="utf-8"))  # the nodes that there would be


def test_json_stays_one_object_on_standard_output(seed: Path, capsys: pytest.CaptureFixture[str]):
    page = seed.parent / "report.html"
    assert main(["inspect", str(seed), "--json", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("{")
    assert out.endswith("}\n")
    assert page.exists()


def test_verify_writes_a_page_whatever_it_finds(seed: Path):
    pytest.importorskip("onnxruntime", reason="verify runs the model")
    clipped, page = seed.parent / "clipped.onnx", seed.parent / "report.html"
    assert main(["rewrite", str(seed), "-o", str(clipped), "--verify", "--html", str(page)]) == 0
    assert "and verified it" in text_of(page.read_text(encoding="utf-8"))
    model = onnx.load(clipped)
    next(node for node in model.graph.node if node.op_type == "Min").op_type = "Max"
    onnx.save(model, clipped)
    assert main(["verify", str(seed), str(clipped), "--html", str(page)]) == 1
    assert "WRONG" in text_of(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("at", ["step", "micro-batch"])
def test_the_page_of_a_folder_that_is_clipped(at: str, tmp_path: Path):
    source, page = MODELS / "ort_artifacts" / "mlp_mse_sgd", tmp_path / "page.html"
    assert main(["rewrite", str(source), "-o", str(tmp_path / "out"), "--at", at]) == 0
    assert main(["inspect", str(tmp_path / "out"), "--html", str(page)]) == 0
    seen = Seen.of(page.read_text(encoding="utf-8"))
    assert "4 gradients, all clipped" in seen.texts
    clips = {row[4] for row in seen.rows if row[0].endswith("_grad")}
    assert clips == {"norm <= 1" + (" (at the step)" if at == "step" else "")}
    assert ("Loop" in seen.texts) == (at == "step")


def test_the_page_of_a_folder(tmp_path: Path):
    source, page = MODELS / "ort_artifacts" / "mlp_mse_sgd", tmp_path / "report.html"
    assert main(["rewrite", str(source), "-o", str(tmp_path / "out"), "--html", str(page)]) == 0
    text = text_of(page.read_text(encoding="utf-8"))
    assert "micro-batches of a step are added up" in text
    assert "Loop" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--html", "{model}"], "both"),
        (["-o", "{folder}/x", "--html", "{folder}/x"], "both"),
        (["--html", "{folder}/other.txt"], "is no page of onnx-clip"),
        (["--html", "{folder}/nowhere/x.html"], "there is no folder"),
        (["--html", "{folder}"], "it is a folder"),
        (["--html", "-"], "give files, not streams"),
    ],
)
def test_a_page_replaces_nothing_but_a_page(
    seed: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    other = seed.parent / "other.txt"
    other.write_text("mine", encoding="utf-8")
    there = {path: path.read_bytes() for path in seed.parent.iterdir()}
    names = {"model": str(seed), "folder": str(seed.parent)}
    assert main(["rewrite", str(seed), *(each.format(**names) for each in arguments)]) == 2
    assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in seed.parent.iterdir()} == there


def test_one_page_is_for_one_model(seed: Path, capsys: pytest.CaptureFixture[str]):
    other = seed.with_name("other.onnx")
    other.write_bytes(seed.read_bytes())
    assert main(["rewrite", str(seed), str(other), "--html", str(seed.parent / "x.html")]) == 2
    assert "--html is for one model" in capsys.readouterr().err


def test_a_page_replaces_an_older_page_whole_or_not_at_all(tmp_path: Path):
    target = tmp_path / "report.html"
    pages = [rewrite_page(name, None, report(["W"])) for name in ("old", "new")]
    write_page(target, pages[0])
    write_page(target, pages[1])
    assert target.read_text(encoding="utf-8") == pages[1]
    assert list(tmp_path.iterdir()) == [target]
    target.write_text("mine", encoding="utf-8")
    with pytest.raises(OnnxClipError, match="is no page of onnx-clip"):
        check_page_target(target)


# -- runs ------------------------------------------------------------------------------------------


def norms(steps: int, *, clipped: bool = False, stopped: str = "", names: tuple[str, ...] = ()):
    """Norms 1 and 2 of two gradients; the second is 1000 in step 3, and nan in the last."""
    names = names or ("W", "b")
    rows = []
    for step in range(steps):
        found = np.arange(1.0, len(names) + 1)
        found[1] = 1000.0 if step == 3 else np.nan if stopped and step == steps - 1 else 2.0
        behind = np.minimum(found, 1.5) if clipped else None
        rows.append(NormRow(step, 4.0 / (step + 1), found, found, 0 * found, 0 * found, behind))
    gradients = tuple(f"{name}_grad" for name in names)
    return Norms(Head(gradients, names, clipped, "loss", {"W_new": "W"}, names[0]), rows, stopped)


def test_the_page_of_a_run_shows_the_peak_and_what_each_norm_was():
    seen = Seen.of(page_of(norms(20)))
    assert seen.faults == []
    text = "\n".join(seen.texts)
    assert "The loss went from 4 to 0.2" in text
    assert "20 steps of 2 gradients" in text
    assert ["W_grad", "W", "1", "1", "1", "", "0"] in [row[:7] for row in seen.rows]
    assert ["b_grad", "b", "2", "2", "1000", "", "0"] in [row[:7] for row in seen.rows]
    assert "its clip took away" not in text
    darkest = [
        attrs["d"] for _, attrs in seen.elements if attrs.get("class") == "v8" and "d" in attrs
    ]
    assert darkest == ["M3 1h1v1h-1z"]


def test_the_page_of_a_clipped_run_that_broke_says_so_first():
    page = page_of(norms(10, clipped=True, stopped="the loss is not finite in step 9"))
    seen = Seen.of(page)
    (verdict,) = (attrs for _, attrs in seen.elements if "verdict" in (attrs.get("class") or ""))
    assert verdict["class"] == "verdict bad"
    assert page.index("the loss is not finite in step 9") < page.index("<section")
    # Of nine finite norms the percentile is a fifth of the way from 2 to 1000; nan is not clipped.
    assert ["b_grad", "b", "2", "201.6", "inf", "", "90"] in [row[:7] for row in seen.rows]
    assert "global norm is not finite" in seen.texts


def test_the_page_of_a_long_run_is_short_and_names_are_text():
    page = page_of(norms(5000, names=tuple(HOSTILE)))
    assert len(page) < 150_000
    seen = Seen.of(page)
    assert seen.faults == []
    assert seen.tags().isdisjoint(LOADING | {"b"})
    assert {row[0] for row in seen.rows} >= set(NAMED.values())


def test_watch_writes_a_page(tmp_path: Path):
    pytest.importorskip("onnxruntime", reason="watch runs the model")
    page = tmp_path / "run.html"
    feeds = str(SEED.with_name("train_step.inputs.npz"))
    assert main(["watch", str(SEED), "--feeds", feeds, "--steps", "5", "--html", str(page)]) == 0
    assert "5 steps of 2 gradients" in text_of(page.read_text(encoding="utf-8"))
    assert main(["watch", str(SEED), "--feeds", feeds, "--dry-run", "--html", str(page)]) == 2


# -- the parts -------------------------------------------------------------------------------------


def test_an_element_escapes_all_that_is_no_markup():
    inner = element("i", "a<b", class_="x", data_at='"1"', open=True, hidden=False)
    assert inner == '<i class="x" data-at="&quot;1&quot;" open>a&lt;b</i>'
    assert element("p", inner, None, "&") == f"<p>{inner}&amp;</p>"
    assert joined([inner, "<"]) == f"{inner}&lt;"


NUMBERS = {
    0.25: "0.25",
    1234.5678: "1235",
    123456.0: "1.235e+05",
    3e-9: "3e-09",
    float("inf"): "inf",
    float("nan"): "\N{EN DASH}",
}


@pytest.mark.parametrize(("value", "said"), NUMBERS.items())
def test_numbers_are_short(value: float, said: str):
    assert number(value) == said


def test_the_column_that_opens_details_is_always_there():
    with pytest.raises(ValueError, match="'W', must be of level 1"):
        Table((Column("W", level=2),), ())


def test_counts_and_shapes():
    assert count(1234567) == "1,234,567"
    assert (
        shape((2, "<n>", None))
        == "2<wbr>\N{MULTIPLICATION SIGN}&lt;n&gt;<wbr>\N{MULTIPLICATION SIGN}?"
    )
    assert (shape(()), shape(None)) == ("scalar", "?")


def test_a_page_is_small_and_grows_with_what_is_on_it():
    sizes = [len(rewrite_page("m", "out", many_rows(n)[0], when="now")) for n in (20, 5000)]
    assert sizes[0] < 30_000
    assert 2_000_000 < sizes[1] < 3_000_000
