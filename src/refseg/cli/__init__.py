"""The commands in the order of work; each lives in the module of its subject."""

from __future__ import annotations

from functools import partial
from typing import Any

from refseg.cli.benchmarking import bench
from refseg.cli.converting import convert
from refseg.cli.datasets import data
from refseg.cli.demonstrating import demo
from refseg.cli.exporting import export
from refseg.cli.figures import figure
from refseg.cli.labelling import label
from refseg.cli.running import Order, application, run
from refseg.cli.scoring import calibrate, evaluate, report, score
from refseg.cli.segmenting import segment
from refseg.cli.serving import serve
from refseg.cli.training import train

_ASKS: dict[str, Any] = {"no_args_is_help": True}  # without arguments it could do nothing, so that it explains itself
_OVERRIDES: dict[str, Any] = {"context_settings": {"ignore_unknown_options": True}}  # a recipe's own keys

ORDER: Order = {
    "Find things in photographs": {demo: {}, segment: _ASKS, label: _ASKS, serve: {}},
    "Train a model and score it": {
        data: _ASKS,
        train: _ASKS | _OVERRIDES,
        evaluate: _ASKS,
        score: _ASKS,
        report: _ASKS,
        calibrate: _ASKS,
    },
    "Draw, measure and hand over": {figure: _ASKS, bench: {}, export: _ASKS, convert: _ASKS},
}

app = application(ORDER)
main = partial(run, app)
