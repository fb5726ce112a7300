"""Every check of this project: `nox` runs them all, `nox -s tests` one of them.

Continuous integration runs the tests by the README's command, and the sessions tagged "ci" here.
"""

import os
import re
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
PROJECT = nox.project.load_toml("pyproject.toml")["project"]
PYTHONS = [line.split()[-1] for line in PROJECT["classifiers"] if " 3." in line]
PINNED = {re.split("[<=>]", line)[0]: line for line in PROJECT["optional-dependencies"]["dev"]}


@nox.session(tags=["ci"])
def lint(session: nox.Session) -> None:
    """Check style and format with ruff."""
    session.install(PINNED["ruff"])
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session(tags=["ci"])
def types(session: nox.Session) -> None:
    """Check the types of the package with mypy."""
    session.install(".[ir]", PINNED["mypy"], PINNED["types-protobuf"])
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests and the examples in docstrings, and measure what they cover."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *(session.posargs or ["--cov"]))


@nox.session(python="3.11", tags=["ci"])
def ort_training(session: nox.Session) -> None:
    """Run the tests that need onnxruntime-training, beside the versions it was built for.

    Its onnx is older than we allow elsewhere, hence --no-deps; docs/versions.md says what for.
    """
    session.install(
        "onnxruntime-training-cpu==1.19.2",
        "onnx==1.16.2",
        "numpy<2",
        "torch==2.13.0",
        "click",
        "rich",
        "hypothesis>=6",
        "pytest>=8",
    )
    session.install("--no-deps", "-e", ".")
    session.run(
        "python",
        "-m",
        "pytest",
        *(session.posargs or ["tests/training", "tests/artifacts", "tests/examples"]),
    )


@nox.session(tags=["ci"])
def examples(session: nox.Session) -> None:
    """Train the examples of digits and a lost run; that of several workers is in ort_training."""
    session.install("-e", ".[test,examples]")
    session.run("python", "-m", "pytest", *(session.posargs or ["tests/examples"]))


PAGE = "tests/test_docs.py::test_what_is_on_a_page_runs_and_gives_what_it_shows"
SHARDED = "tests/examples/test_sharded_training.py"
PYTORCH = ("torch==2.13.0", "onnx==1.23.2", "onnxscript==0.7.2", "onnxruntime==1.32.0")
JAX = ("jax==0.10.2", "optax==0.2.8", "jax2onnx==0.17.1", "onnx==1.23.2", "onnxruntime==1.32.0")


@nox.session(python="3.11", tags=["ci"])
def pytorch(session: nox.Session) -> None:
    """Run docs/pytorch.md, and train its example and that of sharded gradients beside PyTorch.

    The latter on two meshes of workers, on all with ONNX_CLIP_NIGHTLY=1.
    """
    session.install("-e", ".[test]", *PYTORCH)
    paths = ["tests/examples/test_pytorch.py", SHARDED, f"{PAGE}[pytorch.md]"]
    env = {"ONNX_CLIP_SHARDED": "1"}
    session.run("python", "-m", "pytest", *(session.posargs or paths), env=env)


@nox.session(python="3.11", tags=["ci"])
def jax(session: nox.Session) -> None:
    """Run docs/jax.md, which trains what its example exports beside optax."""
    session.install("-e", ".[test]", *JAX)
    paths = ["tests/examples/test_jax.py", f"{PAGE}[jax.md]"]
    session.run("python", "-m", "pytest", *(session.posargs or paths))


@nox.session(python="3.11", default=False)
def architectures(session: nox.Session) -> None:
    """Train small copies of real architectures beside PyTorch: the table of docs/pytorch.md."""
    session.install("-e", ".[cpu]", *PYTORCH, "transformers==5.24.0")
    session.run("python", "examples/pytorch/architectures.py", *session.posargs)


@nox.session(tags=["ci"])
def docs(session: nox.Session) -> None:
    """Build the site, strictly, and look for dead links and for what it loads from elsewhere."""
    session.install("-e", ".[docs,ir]", "pytest>=8")
    session.run("zensical", "build", "--clean", "--strict", env={"PYTHONPATH": "docs"})
    session.run("python", "docs/check_site.py", "site")
    session.run("python", "-m", "pytest", "--noconftest", "tests/site", *session.posargs)


def build(session: nox.Session, folder: Path, *posargs: str) -> Path:
    """The path of the wheel, built into a folder with its sdist; both are looked at."""
    session.install("build", "twine", "pytest>=8")
    for old in (*folder.glob("*.tar.gz"), *folder.glob("*.whl")):
        old.unlink()
    session.run("python", "-m", "build", "--sdist", "--outdir", str(folder))
    (sdist,) = folder.glob("*.tar.gz")
    session.run("python", "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), str(sdist))
    (wheel,) = folder.glob("*.whl")
    session.run("twine", "check", "--strict", str(sdist), str(wheel))
    tests = ["--noconftest", "tests/package", *posargs]
    session.run("python", "-m", "pytest", *tests, env={"ONNX_CLIP_DIST": str(folder)})
    return wheel


@nox.session(tags=["ci"])
def package(session: nox.Session) -> None:
    """Build what would be published, the wheel from the sdist, and look at both."""
    build(session, Path(session.create_tmp()), *session.posargs)


@nox.session(default=False, reuse_venv=False)
def release(session: nox.Session) -> None:
    """Build into dist/ what would be published, and use it as a stranger would; uploads nothing.

    With a tag (`nox -s release -- v1.2.3`), also hold the version and the changelog to it.
    """
    if session.posargs:
        source = Path("onnx_clip_pass/_version.py").read_text(encoding="utf-8")
        (version,) = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)
        if session.posargs != [f"v{version}"]:
            session.error(
                f"expected the tag v{version}, as _version.py says, got {session.posargs}"
            )
        changes = Path("CHANGELOG.md").read_text(encoding="utf-8")
        heading = rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$"
        if not re.search(heading, changes, re.MULTILINE):
            session.error(f"CHANGELOG.md: expected the heading '## {version} (YYYY-MM-DD)'")
    wheel = build(session, Path("dist"))
    session.install(f"{wheel}[cpu]")
    clipped = str(Path(session.create_tmp()) / "clipped.onnx")
    session.run("onnx-clip", "--version")
    step = "models/seed/train_step.onnx"
    session.run("onnx-clip", "rewrite", step, "--output", clipped, "--force", "--verify")
    session.run("onnx-clip", "strip", clipped, "--in-place")


@nox.session(tags=["ci"])
def notebooks(session: nox.Session) -> None:
    """Run the notebooks as a user would who has just installed what their first cell says."""
    session.install(".[cpu]", "nbclient", "ipykernel")
    session.run("jupyter-execute", *sorted(map(str, Path("examples/notebooks").glob("*.ipynb"))))


@nox.session(default=False, venv_backend="none")
def gpu(session: nox.Session) -> None:
    """Prove on a GPU what docs/cuda.md says, with the packages that are there; installs nothing."""
    session.run("python", "benchmarks/on_cuda.py", *session.posargs, external=True)


@nox.session(python="3.11", default=False)
def placement(session: nox.Session) -> None:
    """Where the nodes of all forms run on CUDA, by ONNX Runtime's provider without a GPU."""
    session.install(".", "onnxruntime-gpu==1.31.1", "ml_dtypes")
    session.run("python", "benchmarks/on_cuda.py", "--without-gpu", "--minutes=30")


@nox.session(default=False)
def nightly(session: nox.Session) -> None:
    """Run what takes too long for every change: hostile files, faults, random graphs, norms."""
    session.install("-e", ".[test]")
    paths = session.posargs or [
        "tests/clips/test_random_clips.py",
        "tests/gradients/test_random_steps.py",
        "tests/storage/test_faults.py",
        "tests/storage/test_hostile.py",
        "tests/storage/test_hostile_messages.py",
        "tests/test_forged_records.py",
        "tests/storage/test_more_faults.py",
        "tests/test_precision.py",
        "tests/test_properties.py",
        "tests/test_verify_clips.py",
        "tests/test_verify_mutants.py",
    ]
    session.run("python", "-m", "pytest", *paths, env={"ONNX_CLIP_NIGHTLY": "1"})


@nox.session(python="3.11", default=False)
def mutation(session: nox.Session) -> None:
    """Change the core in 500 small ways, and show which ones no test notices; takes an hour."""
    session.install("-e", ".[test]", "mutmut==3.8.1")
    session.run("python", "-m", "pytest", "--noconftest", "tests/mutation")
    session.run("python", "-m", "tests.mutation", *session.posargs)


@nox.session(default=False)
def browser(session: nox.Session) -> None:
    """Look at pages in headless Chromium, which CI has none of: nightly, and after each change.

    ONNX_CLIP_CHROMIUM says where the browser is, if not on PATH (Debian: apt install chromium);
    ONNX_CLIP_SCREENSHOTS names a folder for screenshots.
    """
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("ONNX_CLIP_CHROMIUM") or next(filter(None, map(shutil.which, names)), "")
    if not found:
        session.error("no Chromium: install one, or name it in ONNX_CLIP_CHROMIUM")
    session.install("-e", ".[test]", "playwright==1.65.2")
    path = "tests/test_pages_in_browser.py"
    session.run("python", "-m", "pytest", path, *session.posargs, env={"ONNX_CLIP_CHROMIUM": found})


@nox.session(python="3.11", tags=["ci"])
def onnx_backend(session: nox.Session) -> None:
    """Clip the official ONNX backend cases and count the outcomes, with the versions counted."""
    folder = "tests/onnx_backend"
    counted = nox.project.load_toml(f"{folder}/expected.toml")["versions"]
    session.install("-e", ".[test]", *(f"{name}=={number}" for name, number in counted.items()))
    session.run("python", "-m", "pytest", folder, *session.posargs, env={"ONNX_CLIP_BACKEND": "1"})


@nox.session(python="3.11", tags=["ci"])
def readers(session: nox.Session) -> None:
    """Hand rewritten models to other people's tools, in versions that have been tried."""
    session.install(
        "-e",
        ".[test]",
        "numpy==2.4.6",
        "onnx==1.23.2",
        "onnxruntime==1.32.0",
        "onnx-graphsurgeon==0.6.1",
        "onnx-ir==1.1.0",
        "onnxscript==0.7.2",
        "onnxsim==0.8.1",
        "onnxslim==0.1.98",
    )
    path = "tests/test_other_readers.py"
    session.run("python", "-m", "pytest", path, *session.posargs, env={"ONNX_CLIP_READERS": "1"})


@nox.session(default=False)
def benchmarks(session: nox.Session) -> None:
    """Run the benchmarks; without arguments only to see that they work."""
    session.install(
        "-e", ".[test]", "psutil", "onnx-graphsurgeon==0.6.1", "onnx-ir==1.1.0", "onnxscript==0.7.2"
    )
    session.run("python", "benchmarks/run.py", *(session.posargs or ["--quick"]))


@nox.session(python=PYTHONS, default=False)
def pythons(session: nox.Session) -> None:
    """Run all tests with each Python that the package is for, as far as it is installed here."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


# Why the oldest of all is not held to every test. docs/versions.md says what that means for users.
NOT_WITH_THE_OLDEST = [
    "-k",
    "not ("
    # Operators of opset 22 and later are unknown.
    "jax_grad or mlp_float64 or mlp_sgd or opset_24 or test_rewrite_and_inspect_probe"
    " or newest or (test_samples_are_clipped_by_rows and 24]) or test_the_same_forms_run_on_the_cpu"
    " or test_sizes_that_were_made_up"
    # ONNX Runtime's optimizer gives two nodes of the original one name.
    " or gru"
    # ONNX Runtime before 1.26 returns an input that is an output as a view of freed memory.
    " or optimizer_only"
    ")",
]
OLDEST = [
    "click==8.1.0",
    "griffelib==2.0.0",
    "hypothesis==6.0.0",
    "ml_dtypes==0.5.0",
    "numpy==1.26.0",
    "onnx==1.21.0",
    "onnx-ir==0.1.16",
    "protobuf==4.25.8",
    "pytest==8.0.0",
    "pytest-cov==5.0.0",
    "regex==2023.10.3",
    "rich==13.0.1",
]
VERSIONS = {
    "oldest": [*OLDEST, "onnxruntime==1.20.0"],
    "all": [*OLDEST, "onnxruntime==1.26.0"],
    "newest": ["--upgrade", "--upgrade-strategy=eager"],
}


@nox.session(python="3.11", default=False)
@nox.parametrize("which", list(VERSIONS), ids=list(VERSIONS))
def versions(session: nox.Session, which: str) -> None:
    """Run the tests with the oldest versions supported, the oldest that pass all, the newest."""
    session.install("-e", ".[test]", *VERSIONS[which])
    session.run("python", "-m", "pip", "list")
    args = NOT_WITH_THE_OLDEST if which == "oldest" else []
    session.run("python", "-m", "pytest", "tests", *args, *session.posargs)
