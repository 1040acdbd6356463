"""The rooms of the package: who may import whom, everywhere in a module, for types as well; and no circles."""

from __future__ import annotations

import ast
from itertools import pairwise

import pytest
from blocks import ROOT

SOURCE = ROOT / "src"

ALLOWED = {
    # what everything else stands on
    "errors": "",
    "files": "errors",
    "words": "errors",
    "photo": "errors",
    "transforms": "errors photo",
    "masks": "errors photo",
    "calibration": "errors transforms",
    "segmentation": "errors masks",
    "checkpoints": "errors files words",
    # from a photograph and a sentence to a mask
    "models.parts": "errors models",
    "models.shnet": "errors models models.parts",
    "models": "checkpoints errors files models.parts models.shnet words",
    "engines": "checkpoints errors files models transforms words",
    "segmenter": "calibration checkpoints engines errors files masks models photo segmentation transforms words",
    "demo": "errors segmentation segmenter",
    # from data to a checkpoint and its scores
    "data.expressions": "data errors masks",
    "data.published": "data data.expressions errors files masks photo",
    "data": "data.expressions data.published errors files masks photo words",
    "evaluation": "calibration checkpoints data data.expressions engines errors files masks models segmentation "
    "segmenter transforms words",
    "training": "calibration checkpoints data data.expressions engines errors evaluation files masks models "
    "models.parts photo segmenter transforms words",
    # what people use
    "annotation": "errors files masks segmentation segmenter words",
    "serve": "annotation demo errors files masks photo segmentation segmenter words",
    "cli": "annotation checkpoints data data.expressions data.published demo engines errors evaluation files photo "
    "segmentation segmenter serve training words",
    "refseg": "errors models.shnet segmentation segmenter",
    "__main__": "cli",
}
"""Rooms (a folder, or a module at the top) and the rooms that each may import."""

STILL: dict[tuple[str, str], str] = {
    ("checkpoints", "models"): "asks the registry which model types there are",
    ("segmenter", "data"): "the store of dependency trees lies in data/parses.py",
    ("evaluation", "models.shnet"): "bench builds the paper's network",
    ("evaluation", "models.parts"): "bench measures single parts",
    ("evaluation", "training"): "bench measures a training step",
}
"""Arrows that go the wrong way still, and why. None is to be added."""


def modules() -> dict[str, ast.Module]:
    named = {}
    for path in sorted((SOURCE / "refseg").rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        named[name] = ast.parse(path.read_text(encoding="utf-8"))
    return named


MODULES = modules()


def imports(name: str, known=MODULES) -> set[str]:
    """The package's modules that a module imports, at its top, in functions and for types."""
    found = set()
    for node in ast.walk(known[name]):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports relatively"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {place if place in known else node.module for place in inside}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(known) - {name}


GRAPH = {name: imports(name) for name in MODULES}


def room(module: str) -> str:
    """models.shnet for refseg.models.shnet.network, and words for refseg.words."""
    inside = module.split(".")[1:]
    is_folder = (SOURCE.joinpath(*module.split("."))).is_dir()
    return ".".join(inside if is_folder else inside[:-1] or inside) or "refseg"


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of one circle, its first at the end again; empty if there is none."""
    finished: set[str] = set()

    def visit(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node not in finished:
            for successor in sorted(graph.get(node, ())):
                if found := visit(successor, [*way, node]):
                    return found
            finished.add(node)
        return []

    return next((found for node in graph if (found := visit(node, []))), [])


def reached(*starts: str) -> set[str]:
    """The modules that these rooms import, and all that those import."""
    waiting = [module for module in GRAPH if room(module) in starts]
    seen = set(waiting)
    while waiting:
        new = GRAPH[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def test_every_arrow_is_allowed():
    arrows = {(room(name), room(other)): f"{name} imports {other}" for name in GRAPH for other in GRAPH[name]}
    allowed = {(start, end) for start, ends in ALLOWED.items() for end in ends.split()}
    own = {(start, start) for start in ALLOWED}
    assert sorted(arrows[arrow] for arrow in arrows.keys() - allowed - own - STILL.keys()) == []
    assert sorted(set(STILL) - set(arrows)) == [], "no longer there: take them out of STILL"
    assert {room(name) for name in GRAPH} == set(ALLOWED)


def test_the_rooms_themselves_make_no_circle():
    """A folder's inner folders are part of it: what they exchange is their own affair."""

    def outer(name: str) -> str:
        return name.split(".")[0]

    graph: dict[str, set[str]] = {}
    for start, ends in ALLOWED.items():
        graph.setdefault(outer(start), set()).update({outer(end) for end in ends.split()} - {outer(start)})
    assert circle(graph) == []


def test_no_module_imports_itself_by_a_detour():
    way = circle(GRAPH)
    assert [f"{module} imports {other}" for module, other in pairwise(way)] == []


def test_the_top_is_easy_to_survey():
    files = {path.stem for path in (SOURCE / "refseg").glob("*.py")} - {"__init__", "__main__"}
    assert len(files) <= 11, sorted(files)


def test_answering_needs_no_training_and_no_lexicon():
    for module in reached("segmenter", "engines", "models", "annotation", "serve", "demo"):
        assert not module.startswith(("refseg.data.expressions", "refseg.training", "refseg.evaluation")), module


@pytest.mark.parametrize(("start", "end"), [("data", "training"), ("models", "engines"), ("annotation", "serve")])
def test_no_way_leads_back(start, end):
    starts = {room(module) for module in GRAPH if room(module).split(".")[0] == start}
    assert not [module for module in reached(*starts) if room(module).split(".")[0] == end]


def test_the_commands_stand_in_modules_of_their_subject():
    assert not [node for node in ast.walk(MODULES["refseg.cli"]) if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def test_circles_and_hidden_imports_would_be_found():
    known = {
        "a": ast.parse("def f():\n    import b"),
        "b": ast.parse("if TYPE_CHECKING:\n    from c.d import x"),
        "c.d": ast.parse("from c import e"),
        "c.e": ast.parse("import a"),
    }
    graph = {name: imports(name, known) for name in known}
    assert graph == {"a": {"b"}, "b": {"c.d"}, "c.d": {"c.e"}, "c.e": {"a"}}
    assert circle(graph) == ["a", "b", "c.d", "c.e", "a"]
    assert circle({**graph, "c.e": set()}) == []
