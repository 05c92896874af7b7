"""What `.ci/run` holds for one environment, over many: ``uvx nox -s tests-3.12 lowest core``.

Interpreters come from the machine; a missing one is skipped. Arguments after ``--`` are pytest's.
"""

from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["tests", "lowest", "core", "upstream"]

PYTHONS = ["3.11", "3.12", "3.13"]
SMOKE = """
import timm, torch
import sketchfusion_plugins
from sketchfusion_plugins import SketchFusionEncoder

model = timm.create_model("sketchfusion_tiny", pretrained=True, num_classes=3).eval()
assert model(torch.zeros(1, 3, 96, 64)).shape == (1, 3)
encoder = SketchFusionEncoder.from_pretrained("sketchfusion/tiny").eval()
assert encoder(torch.zeros(1, 3, 96, 64)).isfinite().all()
"""


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """All tests, with the newest dependencies."""
    session.install(".[dev]")
    session.run("pytest", *session.posargs)


@nox.session(python="3.11", venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """All tests, with the lowest versions that pyproject.toml declares."""
    session.install("--resolution", "lowest-direct", ".[dev]")
    session.run("pytest", *session.posargs)


@nox.session(python=PYTHONS)
def core(session: nox.Session) -> None:
    """Bundled weights and the command line, with no extra installed."""
    session.install(".")
    session.run("python", "-c", SMOKE)
    session.run("sketchfusion", "summary", "sketchfusion_tiny")


@nox.session(python="3.11")
def upstream(session: nox.Session) -> None:
    """MMSegmentation's part on OpenMMLab's own releases in place of the forks."""
    # What the extra "tasks" brings, but for the fork of mmengine.
    tasks = ["faiss-cpu", "filelock", "kornia", "opencv-python", "pytorch-metric-learning"]
    tools = ["hypothesis", "pytest", "pytest-xdist", "torchmetrics"]
    session.install(".[mmseg-upstream,quickstart]", *tasks, *tools)
    session.run("pytest", *(session.posargs or ["tests/mm"]))


@nox.session
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of what gets installed, and its bill of materials (CycloneDX)."""
    session.install(".[all]", "pip-audit", "cyclonedx-bom")
    session.run("cyclonedx-py", "environment", "--output-file", "sbom.json")
    # All but this package, which no registry has; --strict fails where nothing could be asked.
    frozen = session.run("pip", "freeze", "--exclude", "sketchfusion-plugins", silent=True)
    requirements = Path(session.create_tmp(), "requirements.txt")
    requirements.write_text(str(frozen))
    options = ["--strict", "--no-deps", "--disable-pip"]
    session.run("pip-audit", *options, "--requirement", str(requirements))
