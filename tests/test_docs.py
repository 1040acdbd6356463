"""The documentation: its blocks run or say why not, its commands exist, its links lead somewhere, its site is whole."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import httpx
import pytest
import typer
import yaml
from blocks import ROOT, as_shell, find_blocks, run_block
from PIL import Image

from refseg.cli import app
from refseg.training.recipe import load_recipe

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
README = ROOT / "README.md"
BESIDE = [ROOT / name for name in ("MODEL_CARD.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
SERVER = "server"  # a block's need that is no module


def runnable(page):
    return [block for block in find_blocks(page) if block.verdict == "run"]


def is_quick(block):
    """Whether it runs in this process as it is; each command costs seconds to start, and so does each engine."""
    return block.language == "python" and not block.note


def is_python(page):
    return all(block.language == "python" for block in runnable(page))


def named(pages):
    return [pytest.param(page, id=page.stem) for page in pages]


@pytest.fixture
def folder(tmp_path, tiny_model, monkeypatch):
    """What the pages speak of: a photograph, alone and in a folder, recipes, examples, and a trained model."""
    from refseg.demo import PHOTO

    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CURL_HOME", str(tmp_path))
    (tmp_path / ".curlrc").write_text("fail\n")  # a refusal is a failure
    (tmp_path / "photos").mkdir()
    with Image.open(PHOTO) as photo:
        photo.resize((256, 256)).save(tmp_path / "street.jpg")
    shutil.copy(tmp_path / "street.jpg", tmp_path / "photos")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(tiny_model, tmp_path / "runs" / "mine")
    return tmp_path


@contextmanager
def serving(model, port):
    command = [sys.executable, "-m", "refseg", "serve", "--model", str(model), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        else:
            raise AssertionError("the server did not become ready")
        yield
    finally:
        server.terminate()
        server.wait(30)


def run_page(blocks, folder, model):
    """Runs blocks from top to bottom, at a free port in place of the documented one; what they printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    blocks = [replace(block, text=re.sub(r"\b8000\b", str(port), block.text)) for block in blocks]
    names = {}

    def run():
        return [
            run_block(block, folder, names)
            for block in blocks
            if block.note in ("", SERVER) or importlib.util.find_spec(block.note)
        ]

    if not any(block.note == SERVER for block in blocks):
        return "".join(run())
    with serving(model, port):
        return "".join(run())


class TestBlocks:
    def test_are_found_with_their_comments(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text(
            "<!-- run -->\n```console\n$ echo one\none\n$ echo two\n```\n\n```bash\nexit 3\n```\n"
            "<!-- not run: needs a GPU -->\n```python\n1 / 0\n```\n<!-- run: tomllib -->\n```python\nx = 1\n```\n"
        )
        blocks = find_blocks(page)
        assert [(block.place, block.verdict, block.note) for block in blocks] == [
            ("page.md:1", "run", ""),
            ("page.md:8", "", ""),
            ("page.md:11", "not run", "needs a GPU"),
            ("page.md:15", "run", "tomllib"),
        ]
        assert run_block(blocks[0], tmp_path, {}) == "one\ntwo\n"
        with pytest.raises(AssertionError, match=r"page\.md:8"):
            run_block(blocks[1], tmp_path, {})
        names = {}
        run_block(blocks[3], tmp_path, names)
        assert names["x"] == 1

    @pytest.mark.parametrize("page", named(PAGES))
    def test_each_runs_or_says_why_not(self, page):
        unmarked = [block.place for block in find_blocks(page) if not block.verdict]
        unexplained = [block.place for block in find_blocks(page) if block.verdict == "not run" and not block.note]
        assert unmarked == unexplained == []

    @pytest.mark.parametrize("page", named(page for page in PAGES if runnable(page) and is_python(page)))
    def test_python_runs(self, page, folder, tiny_model):
        run_page(filter(is_quick, runnable(page)), folder, tiny_model)

    @pytest.mark.slow
    @pytest.mark.parametrize("page", named(page for page in PAGES if not all(map(is_quick, runnable(page)))))
    def test_everything_runs(self, page, folder, tiny_model):
        run_page(runnable(page), folder, tiny_model)


def commands(text):
    """The words behind each `refseg` in a shell's text; a variable becomes a value that any option takes."""
    text = re.sub(r"<<'?(\w+)'?\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    for line in re.sub(r"\$\w+", "native", text.replace("\\\n", " ")).splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command = []
        for word in [*words, ";"]:
            if not word.strip("();<>|&"):
                yield from _refseg(command)
                command = []
            elif command or not (word == "do" or re.match(r"\w+=", word)):
                command.append(word)


def _refseg(command):
    """What stands behind refseg, started by itself or by torchrun; nothing for another program."""
    if command[:1] == ["refseg"]:
        yield command[1:]
    elif ("-m", "refseg") in pairwise(command):
        yield command[command.index("refseg") + 1 :]


def check_command(words):
    """Raises what the command line would say of unknown commands, options and values, and of a recipe's keys."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    context = command.make_context(command.name, words)
    if command.name == "train":
        from refseg.cli.arguments import split_overrides

        (recipe,), overrides = split_overrides(context.params["arguments"])
        if (ROOT / recipe).is_file():
            load_recipe(ROOT / recipe, overrides)


class TestCommands:
    def test_are_found(self):
        text = 'for x in a b; do\n  refseg score $x --data "a b"  # why\ndone\nA=1 refseg serve > log &\n'
        text += "torchrun -m refseg train \\\n    r.yaml\ncat > x <<'END'\nrefseg nothing\nEND\n"
        assert [*commands(text)] == [["score", "native", "--data", "a b"], ["serve"], ["train", "r.yaml"]]

    @pytest.mark.parametrize("line", ["segmnt a.jpg", "segment a.jpg --colour red", "evaluate m --protocol lvat"])
    def test_mistakes_are_noticed(self, line):
        with pytest.raises(Exception, match=r"segmnt|colour|lvat"):
            check_command(line.split())

    @pytest.mark.parametrize("page", named([README, *PAGES]))
    def test_exist_as_documented(self, page, monkeypatch):
        monkeypatch.setenv("REFSEG_DATA", "datasets")  # as the pages do
        faults = {}
        for block in find_blocks(page):
            if block.language == "python":
                ast.parse(block.text, block.place)
                continue
            for words in commands(as_shell(block)):
                line = " ".join(words)
                try:
                    check_command(words)
                except Exception as fault:
                    faults[f"{block.place}: {line}"] = fault
        assert faults == {}


@pytest.mark.parametrize("page", named([README, *BESIDE, *PAGES]))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)", text)
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def leaves(nav):
    """The files of a navigation."""
    if isinstance(nav, str):
        return [nav]
    return [leaf for item in (nav if isinstance(nav, list) else nav.values()) for leaf in leaves(item)]


class Requests(HTMLParser):
    """What a browser fetches by itself for a page; links wait for a click."""

    def __init__(self, text):
        super().__init__()
        self.addresses = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "srcset", "poster", "data") or (name, tag) in (("href", "link"), ("href", "use")):
                self.addresses.append(value or "")
            if name == "style":
                self.addresses += fetched(value or "")


def fetched(style):
    """What a style sheet fetches."""
    return re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')]+)", style)


def foreign(addresses):
    return [address for address in addresses if re.match(r"\s*(?:https?:)?//", address)]


class TestSite:
    def test_navigation_lists_every_page(self):
        listed = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
        there = [page.relative_to(DOCS).as_posix() for page in PAGES] + [page.name for page in BESIDE]
        assert sorted(listed) == sorted(there)

    def test_foreign_requests_would_be_noticed(self):
        page = '<link href="//a/x.css"><img src="b.png"><a href="https://c/"></a><p style="background:url(https://d/)">'
        assert foreign(Requests(page).addresses) == ["//a/x.css", "https://d/"]
        assert foreign(fetched('@import "https://e/";')) == ["https://e/"]

    @pytest.mark.slow
    def test_builds_and_asks_no_other_host(self, tmp_path):
        pytest.importorskip("mkdocs", reason='mkdocs is not installed; pip install "refseg[docs]"')
        build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
        done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        pages = {page: page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")}
        styles = [style.read_text(encoding="utf-8") for style in tmp_path.rglob("*.css")]
        assert len(pages) > len(PAGES) and styles
        found = [address for page in pages.values() for address in foreign(Requests(page).addresses)]
        found += [address for style in styles for address in foreign(fetched(style))]
        assert found == []
        # The theme's script fetches from two hosts, for diagrams and for a repository's stars; there are none.
        scripts = "".join(script.read_text(encoding="utf-8") for script in tmp_path.rglob("*.js"))
        fetching = set(re.findall(r"[\"'`]https?://([\w.-]+)", scripts))
        assert fetching <= {"unpkg.com", "api.github.com"}
        assert not any('class="mermaid"' in page or 'data-md-component="source"' in page for page in pages.values())
        assert 'id="refseg.load"' in pages[tmp_path / "reference.html"]
