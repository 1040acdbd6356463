"""What is measured is what is named; how fast it is depends on the machine and is asserted nowhere."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from refseg.evaluation.bench import Case, Growth, _watched, busy, inference, measure, plain_form, write_csv
from refseg.models.interface import TokenBatch
from refseg.models.shnet import SHNet
from refseg.models.shnet.aggregation import HCAM


def test_the_plain_form_computes_the_same(tiny_model: Path) -> None:
    model = SHNet.from_pretrained(tiny_model).eval()
    ids = torch.tensor([[2, 3, 4], [3, 0, 0]])
    tokens = TokenBatch(ids, ids > 0)
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        before = model(tokens, images=images).mask_logits
        plain = plain_form(model)
        assert isinstance(plain.aggregation, HCAM)
        torch.testing.assert_close(plain(tokens, images=images).mask_logits, before)


def test_ratios_are_to_the_first_case_and_arithmetic_is_counted() -> None:
    small, large = torch.rand(64, 64), torch.rand(512, 512)
    cases = {"large": Case(lambda: large @ large, 2), "small": Case(lambda: small @ small)}
    first, second = measure("products", cases, 3)
    assert first.ratio == 1.0
    assert second.ratio == pytest.approx(first.seconds / second.seconds)
    assert first.gflop == pytest.approx(512**3 / 1e9)  # two for each product and sum, for half of the case
    assert second.gflop == pytest.approx(2 * 64**3 / 1e9)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of memory from /proc")
def test_memory_is_that_of_the_block() -> None:
    with _watched() as memory:
        held = torch.ones(256 << 18)  # 256 MiB: the kernel may take back some of the process's other pages meanwhile
    assert held[0] == 1
    assert 240 < memory[0] < 312


def test_lines_are_written_as_csv(tmp_path: Path) -> None:
    lines = [Growth("photographs", 10, 1.23456, 0.5)]
    written = {"quantity": "photographs", "value": "10", "seconds": "1.235", "memory": "0.5"}
    for machine, expected in ((None, written), ("a laptop", written | {"machine": "a laptop"})):
        write_csv(tmp_path / "new" / "growth.csv", lines, machine)
        with (tmp_path / "new" / "growth.csv").open() as file:
            assert list(csv.DictReader(file)) == [expected]


@pytest.mark.slow
def test_every_engine_is_measured_on_the_shipped_model_and_clipseg() -> None:
    cases = [line.case for line in inference(1, 1)]
    assert cases[0] == "paper's network, plain: one expression"
    for named in ("paper's network, light decoder, onnx", "shipped model, onnx", "CLIPSeg, onnx", "CLIPSeg, torch"):
        assert sum(case.startswith(named) for case in cases) == 2, named


@pytest.mark.slow
def test_first_answers_are_measured_beside_busy_processes() -> None:
    lines = busy(1)
    assert {line.engine for line in lines} == {"onnx", "torch"} and {1} <= {line.threads for line in lines}
    assert all(line.ratio == pytest.approx(line.busy / line.idle) and line.worst >= line.busy > 0 for line in lines)
