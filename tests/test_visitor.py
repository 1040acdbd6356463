"""What a visitor relies on: the README runs, make explains itself, recipes parse, versions agree."""

import os
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from blocks import ROOT, find_blocks, run_block
from PIL import Image

import refseg
from refseg.training.recipe import find_recipe

README = ROOT / "README.md"
RECIPES = sorted(path for folder in (".", "tables") for path in (find_recipe("scenes").parent / folder).glob("*.yaml"))


@pytest.mark.parametrize("block", [block for block in find_blocks(README) if block.verdict == "run"], ids=str)
def test_readme_runs(tmp_path, block):
    from refseg.demo import PHOTO

    with Image.open(PHOTO) as photo:
        photo.resize((256, 256)).save(tmp_path / "street.jpg")
    run_block(block, tmp_path, {})


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
class TestMake:
    targets = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    def test_help_lists_every_target(self):
        shown = subprocess.run(["make", "-C", ROOT, "--no-print-directory"], capture_output=True, text=True)
        lines = dict(line.removeprefix("make ").split(maxsplit=1) for line in shown.stdout.splitlines())
        assert set(self.targets) == set(lines) >= {"help", "demo", "test", "lint", "types", "clean"}

    def test_no_target_is_mistaken_for_a_file(self):
        phony = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert phony and set(phony.group(1).split()) == set(self.targets)

    def test_an_old_python_is_named_with_its_cure(self, tmp_path):
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path)
        done = subprocess.run(["make", "-C", tmp_path, "demo", "PYTHON=false"], capture_output=True, text=True)
        assert done.returncode != 0 and "Python 3.11 or newer" in done.stderr
        assert not (tmp_path / ".venv").exists()


def test_ci_is_a_program():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.parent.name}/{recipe.stem}")
def test_every_recipe_parses(recipe):
    from refseg.training.recipe import load_recipe

    load_recipe(recipe)


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe.parent.name != "tables"], ids=str)
def test_a_recipe_promises_in_its_header_and_needs_no_place_outside(recipe):
    """The tables of the paper have a test of their own."""
    text = recipe.read_text(encoding="utf-8")
    header = "".join(line for line in text.splitlines(True) if line.startswith("#"))
    for promise in ("data", "hardware", "expected", "protocol", "command"):
        assert re.search(rf"^# {promise} ", header, re.MULTILINE), promise
    assert re.search(r"hours: \d", header)
    assert f"refseg train {recipe.stem}\n" in header and "refseg evaluate" in header
    assert "../" not in text


def test_no_file_names_a_place_of_one_machine():
    listing = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    place = re.compile(rb"(?<![\w.~}/-])/(?:work|tmp|home|root|Users)/\w[\w./-]*")
    named = {
        name: found.group()
        for name in map(os.fsdecode, filter(None, listed.stdout.split(b"\0")))
        if (ROOT / name).is_file() and (found := place.search((ROOT / name).read_bytes()))
    }
    assert named == {}


def test_every_dependency_has_a_lower_bound_and_no_cap_without_a_reason():
    """A cap makes a library hard to install next to others; where a break is known, its line says which."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"].values()
    named = [
        name
        for names in (project["build-system"]["requires"], project["project"]["dependencies"], *extras)
        for name in names
    ]
    own = [name for name in named if not name.startswith("refseg[")]
    assert len(own) > 20
    assert [name for name in own if not re.fullmatch(r"[\w-]+(\[\w+\])?>=[\d.]+(,<[\d.]+)?", name)] == []
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if ",<" in line and "#" not in line] == []
    assert not any(name.startswith("torchvision") for name in own)


_UNSAFE = re.compile(
    r"\btorch\.load\((?!.*weights_only=True)|\bpickle\.loads?\(|\byaml\.(?:unsafe_|full_)?load\(|allow_pickle=True"
    r"|use_safetensors=False|safe_serialization=False|trust_remote_code=True|(?<![.\w])(?:eval|exec)\("
)


def test_nothing_is_read_that_could_run_code():
    """Weights are safetensors; `refseg.data.published.pickles` reads pickles with an unpickler of its own."""
    for line in ("torch.load(path)", "torch.load(path, weights_only=False)", "pickle.load(file)", "yaml.load(text)"):
        assert _UNSAFE.search(line)
    assert not _UNSAFE.search("torch.load(path, weights_only=True)")
    files = [path for folder in ("src", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    found = [
        f"{path.name}: {line.strip()}"
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if _UNSAFE.search(line)
    ]
    assert found == [] and files


def test_versions_agree():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d[^]]*)\]", changes, re.MULTILINE)
    assert released[0] == refseg.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == refseg.__version__


def test_citation_names_software_and_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(citation)
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Jain", "Gandhi"]
