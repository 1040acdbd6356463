import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from refseg.cli import ORDER, app, main
from refseg.cli.arguments import RECIPE_KEYS, sort_arguments, split_overrides
from refseg.cli.files import Names, slug
from refseg.errors import RefsegError
from refseg.training.recipe import Recipe

PHOTO, OTHER = "street.jpg", "photos/beach.png"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder: street.jpg, photos/beach.png, photos/notes.txt and an empty folder called cat."""
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    for name in ("photos", "cat"):
        (tmp_path / name).mkdir()
    Image.fromarray(pixels).save(tmp_path / PHOTO)
    Image.fromarray(pixels[:, ::-1]).save(tmp_path / OTHER)
    (tmp_path / "photos" / "notes.txt").write_text("a note")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def segment(here, tiny_model, capsys):
    """Runs `refseg segment` with the tiny model; returns exit code, standard output and standard error."""

    def run(*arguments):
        code = main(["segment", *map(str, arguments), "--model", str(tiny_model), "--device", "cpu"])
        return (code, *capsys.readouterr())

    return run


# What is a photograph, what an expression


@pytest.mark.parametrize(
    ("arguments", "photos", "expressions"),
    [
        ([PHOTO, "the dog"], [PHOTO], ["the dog"]),
        (["the dog", PHOTO, "a cat"], [PHOTO], ["the dog", "a cat"]),
        (["photos/", "dog"], [OTHER], ["dog"]),
        (["./photos", "dog"], [OTHER], ["dog"]),
        (["p*/*", "dog"], [OTHER], ["dog"]),
        ([PHOTO, "where is the dog?"], [PHOTO], ["where is the dog?"]),
        ([PHOTO, "the [left] *"], [PHOTO], ["the [left] *"]),
        ([PHOTO, "man in black/white"], [PHOTO], ["man in black/white"]),
        ([PHOTO, "./" + PHOTO, "dog", "dog"], [PHOTO], ["dog"]),
        ([PHOTO, "x" * 100_000], [PHOTO], ["x" * 100_000]),
        ([PHOTO, "猫", "🐈 …"], [PHOTO], ["猫", "🐈 …"]),
        (["photos/notes.txt", "dog"], ["photos/notes.txt"], ["dog"]),
    ],
)
def test_arguments_are_told_apart(here, arguments, photos, expressions):
    assert sort_arguments(arguments) == ([Path(photo) for photo in photos], expressions)


def test_options_leave_no_doubt(here):
    assert sort_arguments([], [PHOTO], ["cat", "beach.png"]) == (
        [Path(PHOTO)],
        ["cat", "beach.png"],
    )
    assert sort_arguments(["dog"], ["photos"]) == ([Path(OTHER)], ["dog"])


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        (["street.jgp", "dog"], "did you mean street.jpg?"),
        (["Street.JPG", "dog"], "did you mean street.jpg?"),
        (["photos/beech.png", "dog"], "did you mean photos/beach.png?"),
        (["phots/beach.png", "dog"], "no such photograph: phots/beach.png"),
        (["my holiday.jpeg", PHOTO], "no such photograph: my holiday.jpeg"),
        (["photos/*.webp", "dog"], "no such photograph: photos/*.webp"),
        (["men/women", PHOTO], "goes behind -e"),
        (["cat", PHOTO], "write ./cat or -e 'cat'"),
        (["cat/", "dog"], "holds no photographs"),
        (["the dog"], "no photograph is named; for example: refseg segment"),
        ([PHOTO], "no expression says what to segment; for example: refseg segment"),
        ([], "for example: refseg segment"),
    ],
)
def test_doubt_is_an_error_that_names_the_cure(here, arguments, cure):
    with pytest.raises(RefsegError) as fault:
        sort_arguments(arguments)
    assert cure in str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_pattern_in_a_real_name_is_no_pattern(here):
    Path(PHOTO).rename("a[1].jpg")
    assert sort_arguments(["a[1].jpg", "dog"])[0] == [Path("a[1].jpg")]


def test_overrides_in_every_spelling():
    line = ["--a.b", "3", "recipe.yaml", "--c.d=x=y", "--e.f", "-1", "--start", "shipped"]
    assert split_overrides(line) == (["recipe.yaml"], ["a.b=3", "c.d=x=y", "e.f=-1", "start=shipped"])


def test_keys_that_stand_in_no_section_are_those_of_the_recipe():
    plain = {field.name for field in dataclasses.fields(Recipe) if field.name not in ("model", "data", "training")}
    assert set(RECIPE_KEYS) == plain


@pytest.mark.parametrize(
    ("line", "cure"),
    [
        (["--resum"], "no option --resum"),
        (["--a.b"], "--a.b has no value"),
        (["--a.b", "--c.d", "1"], "--a.b has no value"),
    ],
)
def test_overrides_that_are_wrong(line, cure):
    with pytest.raises(RefsegError, match=cure):
        split_overrides(line)


# Names of results


def test_names_never_collide():
    folder = Path("out")
    names = Names(folder, [folder / "a--dog-4.png"])
    given = [names.path(Path(photo), text, ".png").name for photo, text in _PAIRS]
    assert given == ["a--dog.png", "a--dog-2.png", "A--dog-3.png", "a--dog-5.png"]


_PAIRS = [("x/a.jpg", "dog"), ("y/a.jpg", "dog"), ("y/A.jpg", "dog"), ("x/a.jpg", "dog!")]


@pytest.mark.parametrize("text", ["x" * 100_000, "猫" * 200, "🐈", "../../etc", "a\0b\nc", "é" * 90])
def test_any_expression_makes_a_short_file_name(text):
    name = slug(text)
    assert name and not set(name) & set("/\\\0\n .")
    assert len(name.encode()) <= 100
    assert len(Names(Path(), []).path(Path("ü" * 120 + ".jpg"), text, ".json").name.encode()) <= 255


# Whole commands


def test_overlay_by_default(segment, here):
    code, out, err = segment(PHOTO, "the dog", "the red bag")
    assert code == 0 and err == ""
    files = sorted(file.name for file in (here / "refseg-out").iterdir())
    assert files == ["street--the-dog.jpg", "street--the-red-bag.jpg"]
    assert [line.split()[0] for line in out.splitlines()] == ["refseg-out/" + name for name in files]


def test_mask_has_the_photographs_size(segment):
    assert segment("dog", PHOTO, "--out", "masks", "--format", "mask")[0] == 0
    mask = np.asarray(Image.open("masks/street--dog.png"))
    assert mask.shape == (48, 64) and set(np.unique(mask)) <= {0, 255}


def test_json_lines_and_nothing_else(segment, here):
    code, out, _ = segment("./photos/", PHOTO, "dog", "grable dog", "--json")
    records = [json.loads(line) for line in out.splitlines()]
    asked = [(record["photo"], record["expression"]) for record in records]
    assert code == 0
    assert asked == [(photo, text) for photo in (OTHER, PHOTO) for text in ("dog", "grable dog")]
    assert all(record["rle"]["size"] == [48, 64] and record["file"] is None for record in records)
    assert "grable" in records[1]["unknown_words"]
    assert not (here / "refseg-out").exists()


def test_json_with_out_writes_as_well(segment):
    code, out, _ = segment(PHOTO, "dog", "--json", "--out", "masks", "--format", "json")
    record = json.loads(out)
    assert code == 0 and json.loads(Path(record["file"]).read_text())["rle"] == record["rle"]


def test_threshold_is_obeyed(segment):
    def share(threshold):
        segment(PHOTO, "dog", "--format", "mask", "--threshold", threshold)
        return np.asarray(Image.open("refseg-out/street--dog.png")).mean()

    assert share(1e-6) == 255 and share(1 - 1e-6) == 0


def test_people_are_told_what_the_model_does_not_know(segment):
    out = segment(PHOTO, "the grable " + "dog " * 30, "--threshold", 1 - 1e-6)[1]
    assert "'grable'" in out and "found nothing" in out and "first words" in out


def test_a_bad_photograph_is_skipped_and_the_rest_is_done(segment):
    Path("photos/a.jpg").write_bytes(b"")
    Path("photos/z.png").write_bytes(b"no image")
    code, out, err = segment("photos/", "dog")
    assert code == 1
    assert "a.jpg" in err and "z.png" in err and len(err.splitlines()) == 2
    assert Path("refseg-out/beach--dog.jpg").exists() and len(out.splitlines()) == 1
    code, out, err = segment("photos/a.jpg", "dog")
    assert code == 2 and out == "" and "a.jpg" in err


def test_two_photographs_of_one_name_both_get_a_result(segment):
    Image.open(OTHER).save("cat/street.jpg")
    assert segment(PHOTO, "cat/", "dog")[0] == 0
    assert len(list(Path("refseg-out").iterdir())) == 2


def test_no_photograph_is_overwritten(segment, here):
    victim = here / "street--dog.jpg"
    Image.open(PHOTO).save(victim)
    before = victim.read_bytes()
    assert segment(PHOTO, victim, "dog", "--out", here)[0] == 0
    assert victim.read_bytes() == before


def test_unwritable_output_is_found_before_the_work(segment):
    code, out, err = segment(PHOTO, "dog", "--out", f"{PHOTO}/results")
    assert code == 2 and out == "" and err.startswith("refseg: cannot write to") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "line",
    [
        "segment street.jpg dog --model nowhere",
        "segment street.jgp dog",
        "segment street.jpg --expression=",
        "segment street.jpg " + "x" * 100_000,
        "train nothing.yaml",
        "train a.yaml b.yaml",
        "evaluate nowhere --data nothing.jsonl",
        "data expressions nothing.json --out table.jsonl",
    ],
)
def test_errors_are_one_line_and_exit_2(here, capsys, line):
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("refseg: ") and len(err.splitlines()) == 1


@pytest.mark.parametrize("line", ["segment --nope", "nope", "segment x.jpg y --threshold high", "data scenes"])
def test_usage_errors_exit_2(here, capsys, line):
    assert main(line.split()) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_interruption_is_130(here, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("refseg.cli.segmenting.load_model", interrupted)
    assert main(["segment", PHOTO, "dog"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_training_gets_recipe_overrides_and_resume(here, monkeypatch):
    import refseg.training.run

    calls = []
    monkeypatch.setattr(refseg.training.run, "run", lambda *arguments: calls.append(arguments) or Path("runs/x"))
    Path("recipe.yaml").touch()
    assert main(["train", "--a.b", "3", "recipe.yaml", "--resume", "--c.d=x"]) == 0
    assert calls == [(Path("recipe.yaml"), ["a.b=3", "c.d=x"], True)]


def test_scenes_expressions_and_evaluation_in_a_row(here, tiny_model, capsys):
    assert main(["data", "scenes", "--out", "scenes", "--count", "2", "--seed", "1"]) == 0
    instances = capsys.readouterr().out.strip()
    table = ["--images", "scenes/images", "--out", "table.jsonl", "--per-photo", "5"]
    assert main(["data", "expressions", instances, *table]) == 0
    rows = Path("table.jsonl").read_text().splitlines()
    assert 2 <= len(rows) <= 10 and str(len(rows)) in capsys.readouterr().out
    assert main(["evaluate", str(tiny_model), "--data", "table.jsonl", "--json", "--out", "report.json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(Path("report.json").read_text())
    assert report["expressions"] == len(rows) and report["protocol"] == "native"


def refseg(*arguments, **options):
    line = [sys.executable, "-m", "refseg", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, **options)


HEAVY = ("torch", "transformers", "matplotlib")
"""What takes seconds to import and answers no question about a photograph."""


@pytest.mark.parametrize("line", [["--help"], ["segment", "--help"], ["serve", "--help"], ["segment", "a.jgp", "dog"]])
def test_help_and_mistakes_wait_for_nothing_heavy(tmp_path, line):
    code = f"import sys; from refseg.cli import main; main({line}); print([*{{*{HEAVY}}} & {{*sys.modules}}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_answers_wait_for_nothing_heavy(here, tiny_model):
    line = ["segment", PHOTO, "the dog", "--model", str(tiny_model), "--device", "cpu"]
    code = f"import sys; from refseg.cli import main; main({line}); print([*{{*{HEAVY}}} & {{*sys.modules}}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert Path("refseg-out/street--the-dog.jpg").exists(), done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_is_told():
    assert refseg("--version").stdout.startswith("refseg ")


def test_commands_are_listed_in_the_order_of_work(capsys):
    order = "demo segment label serve data train evaluate score report calibrate figure bench export convert"
    assert main(["--help"]) == 0
    listed = re.findall(r"^  (\w+) {2,}[A-Z]", capsys.readouterr().out, re.MULTILINE)
    assert listed == order.split()
    assert [len(commands) for commands in ORDER.values()] == [4, 6, 4]


def commands(group, *names):
    """The names of every command, those of groups before their own."""
    for name, command in group.commands.items():
        yield from commands(command, *names, name) if hasattr(command, "commands") else [" ".join((*names, name))]


@pytest.mark.parametrize("command", list(commands(typer.main.get_command(app))))
def test_help_of_every_command_has_an_example(capsys, command):
    assert main([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"^  refseg {command}( |$)", shown, re.MULTILINE)


def test_a_reader_that_hangs_up_is_no_fault(here, tiny_model):
    line = [sys.executable, "-m", "refseg", "segment", PHOTO, "dog", "--json", "--model", str(tiny_model)]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(line, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.stderr == ""


def test_names_that_are_no_text_do_not_stop_the_work(here, tiny_model):
    name = b"caf\xe9.jpg"
    (here / os.fsdecode(name)).write_bytes(Path(PHOTO).read_bytes())
    line = [sys.executable, "-m", "refseg", "segment", name, "dog", "--model", str(tiny_model)]
    done = subprocess.run(line, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
