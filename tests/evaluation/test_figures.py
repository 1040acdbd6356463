"""The paper's figures: the numbers behind them, what stands in them, and the commands that draw them."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

import refseg
from refseg.cli import main
from refseg.data.table import Row, write_table
from refseg.errors import RefsegError
from refseg.evaluation import figures
from refseg.masks import encode_mask
from refseg.models.shnet.fusion import ConcatFusion
from refseg.segmentation import Segmentation

RANDOM = np.random.default_rng(0)
PHOTO = Image.fromarray(RANDOM.integers(0, 256, (60, 90, 3), dtype=np.uint8))
SQUARE = np.zeros((60, 90), dtype=bool)
SQUARE[20:40, 30:60] = True


@pytest.fixture(scope="module")
def segmenter(tiny_model):
    return refseg.load(tiny_model, device="cpu")


def answer(expression, mask=SQUARE, photo=PHOTO):
    return Segmentation(expression, mask, 0.5, photo)


def shares(words, side=4):
    rows = RANDOM.random((side * side + words, side * side + words))
    return rows / rows.sum(axis=1, keepdims=True)


def panels(figure):
    """The axes with pictures, from the top left on, with everything that is written about them."""
    shown = [axes for axes in figure.axes if axes.images]
    return [(axes, " ".join(text.get_text() for text in axes.texts)) for axes in shown]


def readable(figure):
    """Texts of 6 points or more, all inside the column and none upon another."""
    figure.canvas.draw()
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    boxes = [text.get_window_extent() for text in texts]
    assert texts and min(text.get_fontsize() for text in texts) >= 6
    assert all(box.x0 > -2 and box.x1 < figure.bbox.x1 + 2 and box.y0 > -2 for box in boxes)
    boxes = [box.shrunk(0.95, 0.8) for box in boxes]
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
    assert figure.get_size_inches()[0] == pytest.approx(3.3)
    return True


@pytest.mark.parametrize("sentence", ["dog", "the zebra, left", "?!", "left " * 40])
def test_attention_is_shared_out_whole(segmenter, sentence):
    words, found = segmenter.attention(segmenter.encode(PHOTO), sentence)
    assert found.shape == (3, 1, 16 + len(words), 16 + len(words)) and 1 <= len(words) <= 25
    assert found.min() > 0
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    assert not np.allclose(found[0], found[2], atol=1e-3), "levels differ"


def test_models_stand_beside_the_true_mask():
    answers = {
        "Baseline": [answer("the dog"), answer("a cup", ~SQUARE)],
        "SHNet": [answer("the dog", np.zeros_like(SQUARE)), answer("a cup")],
    }
    figure = figures.compare(answers, [SQUARE, SQUARE])
    shown = panels(figure)
    written = [text for _, text in shown]
    assert written == ["true mask the dog", "Baseline", "SHNet nothing", "a cup", "", ""] or written == [
        "true mask the dog", "Baseline", "nothing SHNet", "a cup", "", ""
    ]  # fmt: skip
    outlines = [axes.patches[-1].get_path().get_extents().bounds if axes.patches else None for axes, _ in shown]
    square, whole = (30, 20, 30, 20), (0, 0, 90, 60)
    assert outlines == [square, square, None, square, whole, square]
    colours = {axes.patches[0].get_facecolor() for axes, _ in shown if axes.patches}
    assert len(colours) == 2 and shown[0][0].patches[0].get_facecolor() == shown[3][0].patches[0].get_facecolor()
    assert readable(figure)


def test_without_true_masks_the_photograph_comes_first():
    figure = figures.compare({"SHNet": [answer("the dog")]})
    (first, title), (second, _) = panels(figure)
    assert title == "photograph the dog" and not first.patches and second.patches
    width, height = figure.get_size_inches() * first.get_position().size
    assert width / height == pytest.approx(90 / 60)


def test_one_photograph_and_the_sentences_below():
    sentences = ["the dog", "$5 and $6", "the small white cat behind the man who is standing on the left", "x"]
    figure = figures.anchor([answer(sentence) for sentence in sentences])
    shown = panels(figure)
    assert [text for _, text in shown] == ["photograph", *sentences]
    assert [len(axes.patches) > 0 for axes, _ in shown] == [False, True, True, True, True]
    assert readable(figure)


@pytest.mark.parametrize(("count", "size"), [(1, (90, 60)), (7, (60, 90)), (25, (90, 60))])
def test_the_words_stand_under_their_maps(count, size):
    """The map of each word is its own row of the attention; the matrix is the words' corner, pixel–pixel a mean."""
    words = [f"word{number}" for number in range(count)]
    photo = PHOTO.resize(size)
    own = shares(count)
    own[16 + count - 1, :16] = np.eye(16)[5]  # the last word attends to one place alone: row 1, column 1
    own[:16, 9] += 2  # every place attends most to row 2, column 1
    figure = figures.attention(answer("the dog", np.zeros(size[::-1], dtype=bool), photo), words, own)
    whole, received, matrix, *maps = panels(figure)
    assert [text for _, text in (received, matrix)] == ["pixel–pixel", "word–word"] and "answer" in whole[1]
    assert [text.removesuffix(" word–pixel") for _, text in maps] == words
    np.testing.assert_array_equal(matrix[0].images[0].get_array(), own[16:, 16:])
    assert [label.get_text() for label in matrix[0].get_yticklabels()] == words
    assert [label.get_text() for label in matrix[0].get_xticklabels()] == words
    heat = maps[-1][0].images[1].get_array()[..., 3]
    quarter = heat[64:128, 64:128]
    assert quarter.min() > 0 and quarter.max() > 0.8 and heat[192:].max() == heat[:, 192:].max() == 0
    heat = received[0].images[1].get_array()[..., 3]
    assert heat[160, 96] > 0.8 and heat[:96].max() < 0.3 and heat[:, 160:].max() < 0.3
    assert readable(figure)


@pytest.mark.parametrize(
    ("draw", "cure"),
    [
        (lambda: figures.anchor([answer("the dog")] * 60), "fewer sentences"),
        (lambda: figures.compare({str(n): [answer("the dog")] for n in range(9)}), "fewer models"),
        (lambda: figures.compare({"a": [answer("the dog")]}, [SQUARE.T]), "height and width"),
        (lambda: figures.save(figures.anchor([answer("the dog")]), Path("figure.pdf")), "end in .png or .svg"),
        (lambda: figures.save(figures.anchor([answer("x")]), Path("no/such/folder.png")), "cannot be written"),
    ],
)
def test_what_does_not_fit_names_the_cure(draw, cure):
    with pytest.raises(RefsegError, match=cure):
        draw()


def test_a_figure_is_fine_and_always_the_same_file(tmp_path):
    for name in ("a.svg", "b.SVG", "a.png"):
        figures.save(figures.anchor([answer("the 🐈"), answer("猫")]), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.SVG").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 1980  # 600 dots an inch


# ---------------------------------------------------------------- the commands


@pytest.fixture
def run(tiny_model, tmp_path, monkeypatch, capsys):
    """Types `refseg figure …` in a folder with a photograph and a table of it; code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "_DPI", 100)  # coarse is quick
    PHOTO.save("street.png")
    row = {"image": Path("street.png"), "image_id": 1, "height": 60, "width": 90, "counts": encode_mask(SQUARE)}
    write_table(Path("table.jsonl"), [Row(**row, expression=text) for text in ("the dog", "a blue cup", "left")])

    def typed(command, *words):
        words = [str(tiny_model) if word == "MODEL" else word.replace("=MODEL", f"={tiny_model}") for word in words]
        code = main(["figure", command, *words])
        return (code, *capsys.readouterr())

    return typed


def parse(path):
    """The size of a picture in inches."""
    if path.endswith(".svg"):
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and len(list(root.iter())) > 20
        return [float(root.get(side).removesuffix("pt")) / 72 for side in ("width", "height")]
    with Image.open(path) as picture:
        picture.load()
        assert np.asarray(picture.convert("L")).std() > 10
        return [side / 100 for side in picture.size]


@pytest.mark.parametrize(
    ("command", "suffix", "words"),
    [
        ("compare", "svg", ("street.png", "the dog", "a cup", "--model", "A=MODEL", "--model", "B=MODEL")),
        ("compare", "png", ("--data", "table.jsonl", "--row", "2", "--row", "0", "--model", "MODEL")),
        ("anchor", "png", ("street.png", "the dog", "a cup", "--model", "MODEL")),
        (
            "attention",
            "svg",
            ("street.png", "the zebra on the left", "--model", "MODEL", "--level", "3", "--layer", "1"),
        ),
    ],
)
def test_a_command_writes_its_figure(run, command, suffix, words):
    code, out, err = run(command, *words, "--out", f"new/figure.{suffix}")
    assert code == 0 and out.splitlines()[0] == f"new/figure.{suffix}"
    width, height = parse(f"new/figure.{suffix}")
    assert width == pytest.approx(3.3, abs=0.01) and 0.5 < height < 9
    assert ("does not know 'zebra'" in err) == (command == "attention")
    assert ("level 3, layer 1 of 1" in out) == (command == "attention")


def test_rows_bring_their_own_sentences_and_masks(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    run("compare", "--data", "table.jsonl", "--row", "2", "--row", "0", "--model", "SHNet=MODEL", "--out", "f.png")
    (figure,) = drawn
    (first, text), (_, name), (second, below), _ = panels(figure)
    assert (text, name, below) == ("true mask left", "SHNet", "the dog")
    for axes in (first, second):
        assert axes.patches[-1].get_path().get_extents().bounds == (30, 20, 30, 20)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("anchor", "none.png", "the dog", "--out", "f.png"), "no file none.png"),
        (("anchor", "street.png", "the dog", "--model", "none", "--out", "f.png"), "no model folder 'none'"),
        (("anchor", "street.png", "the dog", " ", "--out", "f.png"), "expression is empty"),
        (("attention", "street.png", "", "--out", "f.png"), "expression is empty"),
        (("compare", "street.png", "", "--out", "f.png"), "expression is empty"),
        (("anchor", "street.png", "the dog", "--out", "f.jpg"), "end in .png or .svg"),
        (("anchor", "street.png", "the dog", "--out", "table.jsonl/f.png"), "cannot write to"),
        (("anchor", "street.png", "the dog", "--out", "street.png"), "photograph already"),
        (("attention", "street.png", "the dog", "--layer", "7", "--model", "MODEL", "--out", "f.png"), "give 1 to 1"),
        (("compare", "--out", "f.png"), "nothing to compare on"),
        (("compare", "street.png", "--out", "f.png"), "nothing to compare on"),
        (("compare", "--data", "table.jsonl", "--out", "f.png"), "belong together"),
        (("compare", "street.png", "x", "--data", "table.jsonl", "--row", "1", "--out", "f.png"), "belong together"),
        (("compare", "--data", "table.jsonl", "--row", "3", "--out", "f.png"), "rows are 0 to 2"),
        (("compare", "street.png", "x", "--model", "a/m", "--model", "b/m", "--out", "f.png"), "NAME=MODEL"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(run, words, fault):
    code, out, err = run(*words)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and err.startswith("refseg: ")
    assert fault in err
    assert not Path("f.png").exists()


def test_a_row_about_another_size_is_refused(run):
    PHOTO.resize((30, 20)).save("street.png")
    code, _, err = run("compare", "--data", "table.jsonl", "--row", "0", "--model", "MODEL", "--out", "f.png")
    assert code == 2 and "write the table again" in err


def test_a_model_without_sfm_has_no_attention_to_show(run, tiny_model, monkeypatch):
    segmenter = refseg.load(tiny_model, device="cpu", engine="torch")
    segmenter.engine.network.fusion = ConcatFusion(16)
    monkeypatch.setattr("refseg.cli.figures.load_model", lambda *_, **__: segmenter)
    code, _, err = run("attention", "street.png", "the dog", "--out", "f.png")
    assert code == 2 and err == "refseg: this model fuses without attention; load one whose config says fusion: sfm\n"


def test_without_matplotlib_the_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run("anchor", "street.png", "the dog", "--out", "f.png")
    assert code == 2 and err == 'refseg: the plots need matplotlib; pip install "refseg[report]"\n'


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from refseg.cli import main; main(['figure', 'compare', '--help']); "
        "print(sorted({'torch', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
