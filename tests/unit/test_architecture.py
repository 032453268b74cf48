"""docs/architecture.md says how the code is, and its drawing is that of the imports."""

import ast
import itertools
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import networkx as nx
import pytest

from tools.architecture import DOCUMENT, DRAWING, draw, packages

ROOT = Path(__file__).parents[2]
STEP = re.compile(r"^\d+\. `(?P<path>[\w/]+\.py)` `(?P<name>[\w.]+)`: ", re.MULTILINE)


def walk(heading):
    text = DOCUMENT.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    return [(match["path"], match["name"]) for match in STEP.finditer(text)]


def body(path, name):
    """The source of a function or method, by its qualified name."""
    source = (ROOT / path).read_text(encoding="utf-8")
    found = ast.parse(source)
    for part in name.split("."):
        found = next(node for node in found.body if getattr(node, "name", None) == part)
    return ast.get_source_segment(source, found)


N_IMAGES = walk("From `n_images=1,2,5,10` to a row of the table")
TRAINING = walk("One step of training")


@pytest.mark.parametrize(("path", "name"), [*N_IMAGES, *TRAINING])
def test_every_function_of_the_walks_is_where_the_document_says(path, name):
    assert body(path, name)


# Who calls what, where it is not the one before in the walk.
CALLS = [
    ("RefsamLauncher.launch", "plan_jobs"),
    ("plan_jobs", "Planner.plan"),
    ("Planner.plan", "Planner._resolve"),
    ("Planner._resolve", "check_values"),
    ("supervise", "_attempt"),
    ("execute", "_execute"),
]
OF_A_STEP = [
    ("train", "Interactive.gradients", "step.interactive"),
    ("Interactive.gradients", "Prompts.of_training", "prompts.of_training"),
    ("Interactive.gradients", "Interactive.encode", "self.encode"),
    ("Interactive.gradients", "Interactive.iterate", "self.iterate"),
    ("Interactive.iterate", "Interactive._sub_iteration", "self._sub_iteration"),
    ("Interactive.iterate", "Prompts.correct", "prompts.correct"),
    ("Interactive.gradients", "Interactive.encoder_backward", "self.encoder_backward"),
    ("train", "Learner.step", "learner.step"),
    ("train", "Segmentation.gradients", "step.segmentation"),
    ("train", "Recorder.step", "recorder.step("),
    ("train", "validate", "validate("),
    ("train", "Recorder.finish_epoch", "recorder.finish_epoch"),
]


def test_the_functions_of_a_step_are_called_in_the_order_of_the_walk():
    where = {name: path for path, name in TRAINING}
    assert [called for _, called, _ in OF_A_STEP] == [name for _, name in TRAINING[1:]]
    at = -1
    for caller, _, words in OF_A_STEP:
        found = body(where[caller], caller).find(words)
        assert found >= 0, (caller, words)
        if caller == "train":
            assert found > at, words
            at = found


def test_n_images_goes_in_one_direction():
    """Through packages that import those after them, to the file, and from the file back to the table."""
    graph = packages()
    order = [path.split("/")[1] if path.startswith("refsam") else path.split("/")[0] for path, _ in N_IMAGES]
    written = [name for _, name in N_IMAGES].index("prepare_folders")
    for above, below in itertools.pairwise(order[: written + 1]):
        assert above == below or nx.has_path(graph, above, below) or below == "orchestration"
    for caller, called in CALLS:
        path = next(path for path, name in N_IMAGES if name == caller)
        assert re.search(rf"\b{called.split('.')[-1]}\(", body(path, caller)), (caller, called)
    plan = (ROOT / "refsam/orchestration/planning/plan.py").read_text(encoding="utf-8")
    assert "combination_problem(" in plan
    assert "run_id(" in plan
    assert "n_images" in body("refsam/science/data.py", "training_loaders")
    assert "n_images" in body("refsam/results/run_rows.py", "_from_config")


def test_the_drawing_shows_the_packages_and_their_imports(tmp_path):
    draw(tmp_path / "packages.svg")
    words = ElementTree.parse(DRAWING).getroot().itertext()
    assert set(packages()) <= {word.strip() for word in words}
    assert (tmp_path / "packages.svg").read_text(encoding="utf-8") == DRAWING.read_text(encoding="utf-8")


def test_no_two_packages_import_each_other():
    assert nx.is_directed_acyclic_graph(packages())


def test_the_training_loop_fits_on_one_screen():
    assert len(body("refsam/science/training/loop.py", "train").splitlines()) <= 80
