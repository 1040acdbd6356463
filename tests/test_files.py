import pytest

from refseg.files import lock, whole


def test_a_file_replaces_what_was_there(tmp_path):
    (tmp_path / "a").write_text("old")
    with whole(tmp_path / "a") as unfinished:
        unfinished.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "new")]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_fault_leaves_nothing_but_what_was_there(tmp_path, kind):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), whole(tmp_path / "a") as unfinished:
        if kind == "folder":
            unfinished.mkdir()
        ((unfinished / "b") if kind == "folder" else unfinished).write_text("half")
        _ = 1 / 0
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]


def test_a_folder_replaces_no_full_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    with pytest.raises(OSError), whole(tmp_path / "a") as unfinished:
        unfinished.mkdir()
    assert [file.name for file in tmp_path.rglob("*")] == ["a", "mine"]


def test_one_name_is_written_by_several_at_once(tmp_path):
    with whole(tmp_path / "a") as first, whole(tmp_path / "a") as second:
        first.write_text("first")
        second.write_text("second")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "first")]


def test_a_lock_is_taken_once_and_given_back_by_closing(tmp_path):
    with (tmp_path / "a").open("w+b") as first, (tmp_path / "a").open("r+b") as second:
        assert lock(first) and not lock(second)
        first.close()
        assert lock(second)
