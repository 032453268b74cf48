"""docs/packages.svg, drawn from the imports, and the table of endings in docs/architecture.md.

make architecture
"""

from pathlib import Path

import grimp
import matplotlib as mpl
import networkx as nx
from matplotlib.figure import Figure

from refsam.orchestration.lifecycle.retries import TABLE
from refsam.records import endings
from refsam.records.endings import Ending
from refsam.records.status import Reason

DOCS = Path(__file__).parents[1] / "docs"
DOCUMENT = DOCS / "architecture.md"
DRAWING = DOCS / "packages.svg"
ENDINGS = "endings"  # the name of the part of the document that this module writes
WIDTH, HEIGHT = 1.9, 0.5  # of a box, inches


def packages() -> "nx.DiGraph[str]":
    """The packages of refsam and the modules beside them; an edge from each to those that it imports.

    Left out, as in the import contracts: refsam/__init__.py, which imports refsam.api for refsam.load, and
    the download of Covid-IF in datasets/prepare.py, which imports refsam.science.fetch.
    """
    imports = grimp.build_graph("refsam", "hydra_plugins")
    graph: nx.DiGraph[str] = nx.DiGraph()
    for module in imports.modules:
        for imported in imports.find_modules_directly_imported_by(module):
            edge = _package(module), _package(imported)
            if edge[0] != edge[1] and "refsam" not in edge and edge != ("datasets", "science"):
                graph.add_edge(*edge)
    return graph


def _package(module: str) -> str:
    first, *rest = module.split(".")
    return first if first != "refsam" or not rest else rest[0]


def draw(path: Path = DRAWING) -> None:
    """Draw each package below all that import it. Arrows that follow from others are left out."""
    graph = nx.transitive_reduction(packages())
    rows = [sorted(row) for row in nx.topological_generations(graph.reverse())][::-1]
    places = {
        name: ((place + 0.5) / len(row), -float(number))
        for number, row in enumerate(rows)
        for place, name in enumerate(row)
    }
    widest = max(map(len, rows))
    with mpl.rc_context({"svg.hashsalt": "refsam", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(widest * (WIDTH + 0.5), len(rows) * (HEIGHT + 0.45)))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 1), ylim=(0.5 - len(rows), 0.5))
        axes.axis("off")
        box = {"boxstyle": "round,pad=0.45", "facecolor": "#eef3f8", "edgecolor": "#4a6b8a"}
        boxes = {
            name: axes.text(x, y, name, ha="center", va="center", bbox=box, zorder=3).get_bbox_patch()
            for name, (x, y) in places.items()
        }
        for above, below in sorted(graph.edges):
            ends = {"patchA": boxes[above], "patchB": boxes[below], "shrinkA": 0, "shrinkB": 2}
            bend = 0.2 if places[above][1] - places[below][1] > 1 else 0.0  # around the boxes between
            arrow = {"arrowstyle": "-|>", "color": "0.4", "connectionstyle": f"arc3,rad={bend}", **ends}
            axes.annotate("", places[below], places[above], arrowprops=arrow)
        figure.savefig(path, metadata={"Date": None}, facecolor="white")


def endings_table() -> str:
    """What was seen, the reason, the sentence and what follows: a row for each ending."""
    rows = [value for name, value in vars(endings).items() if isinstance(value, Ending)]
    rows += endings.SLURM_ENDINGS.values()
    lines = ["| what was seen | reason | what follows |", "| --- | --- | --- |"]
    lines += [f"| {row.seen} | `{row.reason}` | {_follows(row.reason)} |" for row in rows]
    return "\n".join(lines)


def _follows(reason: Reason) -> str:
    rule = TABLE.get(reason)
    if rule is None:
        return "nothing by itself; `refsam retry`"
    if rule.change is not None:
        return f"at once again, with other settings (`retries.{rule.change.__name__}`)"
    if rule.fruitless == 0:
        return "again from latest.pt, if that is newer than the attempt"
    return f"again from latest.pt, up to {rule.fruitless} times in a row without a newer one"


def part_of(text: str, name: str) -> str:
    """The part of a document between its two marks."""
    return text.split(f"<!-- {name} -->\n")[1].strip("\n")


def main() -> None:
    """Write the drawing and the table anew."""
    draw()
    before, _, after = DOCUMENT.read_text(encoding="utf-8").split(f"<!-- {ENDINGS} -->\n")
    mark = f"<!-- {ENDINGS} -->\n"
    DOCUMENT.write_text(f"{before}{mark}\n{endings_table()}\n\n{mark}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
