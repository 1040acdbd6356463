"""What a visitor relies on: the README runs, make explains itself, recipes parse, versions agree."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

import refseg

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
_BLOCK = re.compile(r"<!-- run -->\s*\n```(python|bash|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def readme_blocks():
    """Language and text of each block of the README that stands below the comment `run`."""
    return _BLOCK.findall(README.read_text(encoding="utf-8")) if README.exists() else []


def as_command(language, text):
    """The command line that runs a block; in a console block, what stands behind a dollar sign is typed."""
    if language == "python":
        return [sys.executable, "-c", text]
    if language == "console":
        text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
    return ["bash", "-euo", "pipefail", "-c", text]


def test_blocks_become_commands():
    text = "<!-- run -->\n```console\n$ echo one\none\n$ echo two\n```\n\n```bash\nexit 3\n```\n"
    ((language, block),) = _BLOCK.findall(text)
    done = subprocess.run(as_command(language, block), capture_output=True, text=True)
    assert done.stdout == "one\ntwo\n"


@pytest.mark.skipif(not readme_blocks(), reason="README.md is absent or has no block below <!-- run -->")
@pytest.mark.parametrize(("language", "text"), readme_blocks() or [("", "")])
def test_readme_runs(tmp_path, language, text):
    from refseg.demo import sample_photo

    with Image.open(sample_photo()) as photo:
        photo.resize((256, 256)).save(tmp_path / "street.jpg")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        as_command(language, text),
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


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


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_every_recipe_parses(recipe):
    from refseg.recipe import load_recipe

    load_recipe(recipe)


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
