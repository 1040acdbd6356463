from pathlib import Path

import pytest

from refseg.engines.threads import available_threads

PROCESSORS = {0, 1, 2, 3}


@pytest.fixture(autouse=True)
def four_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: PROCESSORS, raising=False)


@pytest.mark.parametrize(
    ("quota", "threads"),
    [("max 100000", 4), ("150000 100000", 2), ("20000 100000", 1), ("900000 100000", 4), ("nonsense", 4), ("1 0", 4)],
)
def test_a_control_group_s_quota_limits_the_threads(tmp_path: Path, quota: str, threads: int) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert available_threads(tmp_path) == threads


@pytest.mark.parametrize(("quota", "threads"), [("-1", 4), ("250000", 3)])
def test_so_does_that_of_version_1(tmp_path: Path, quota: str, threads: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert available_threads(tmp_path) == threads


def test_without_a_group_the_affinity_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_threads(tmp_path) == 4
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
    assert available_threads(tmp_path) == 1


@pytest.mark.parametrize(("asked", "threads"), [("1", 1), ("3", 3), ("64", 4), ("0", 1), ("", 4), ("2,1", 4)])
def test_processes_that_share_a_machine_are_told_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert available_threads(tmp_path) == threads
