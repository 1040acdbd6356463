"""A checkpoint for others: written with a model card, and uploaded to the Hugging Face hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Protocol

from huggingface_hub import EvalResult, ModelCardData

from refseg.checkpoints import Checkpoint
from refseg.errors import RefsegError, first_line
from refseg.models.registry import find_network

CARD = "README.md"


class Shares(Protocol):
    """The scores of some expressions; shares in 0..1, NaN where undefined."""

    @property
    def overall_iou(self) -> float: ...
    @property
    def mean_iou(self) -> float: ...
    @property
    def count(self) -> int: ...


class Rules(Protocol):
    """The protocol of a measurement."""

    @property
    def name(self) -> str: ...
    @property
    def scored_at(self) -> str: ...


class Measurement(Protocol):
    """What a card tells of a measurement: `evaluation.report.Report` is one."""

    @property
    def data(self) -> str: ...
    @property
    def splits(self) -> Sequence[str]: ...
    @property
    def version(self) -> str: ...
    @property
    def photographs(self) -> int: ...
    @property
    def protocol(self) -> Rules: ...
    @property
    def overall(self) -> Shares: ...
    @property
    def scores(self) -> Mapping[str, Mapping[str, Shares]]:
        """By group, and by member of the group; the group "all" has the one member "all"."""


def save(
    checkpoint: Checkpoint,
    folder: str | PathLike[str],
    *,
    report: Measurement | None = None,
    license: str = "apache-2.0",
    name: str = "",
) -> None:
    """Writes the checkpoint, its vocabulary and its card; `name` is the model's on the card, by default the folder's.

    `license` is the hub's name of the weights' licence.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    for file in checkpoint.files():
        shutil.copyfile(file, Path(folder) / file.name)
    card = model_card(checkpoint, report, license, name or Path(folder).name)
    (Path(folder) / CARD).write_text(card, encoding="utf-8")


def push(
    checkpoint: Checkpoint,
    name: str,
    *,
    report: Measurement | None = None,
    license: str = "apache-2.0",
    private: bool = False,
) -> str:
    """Uploads what `save` writes to the hub as "org/name"; returns the page's address.

    It needs a login (`hf auth login`) or the environment's HF_TOKEN. Raises RefsegError where the hub refuses.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as scratch:
        save(checkpoint, scratch, report=report, license=license, name=name)
        try:
            api = HfApi()
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=address.repo_id, folder_path=scratch)
        except Exception as fault:  # no login, no network, no permission, a malformed id
            raise RefsegError(
                f"the hub did not take {name} ({first_line(fault)}); run hf auth login and try again"
            ) from fault
    return str(address)


def model_card(checkpoint: Checkpoint, report: Measurement | None, license: str, name: str) -> str:
    """The card: metadata that the hub reads, then what a person wants to know. No number without a report."""
    network, config = find_network(checkpoint.model_type), checkpoint.config
    settings = checkpoint.settings
    metadata = ModelCardData(
        license=license,
        library_name="refseg",
        pipeline_tag="image-segmentation",
        tags=["referring-image-segmentation", checkpoint.model_type],
        language="en",
        model_name=name,
        eval_results=None if report is None else _results(report),
    )
    backbone = config["backbone_config"]["model_type"]
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {name}",
        "Finds in a photograph what a sentence describes and returns its mask.",
        f'```python\nimport refseg\n\nsegmenter = refseg.load("{name}")\n'
        'segmenter("street.jpg", "the red bag").save("mask.png")\n```',
        f"{network.__name__} ({network.paper}) with a {backbone} encoder: {checkpoint.parameters / 1e6:.1f} "
        f"million parameters, input {settings.image_size}×{settings.image_size}, at most {settings.max_words} words of "
        f"a vocabulary of {config['vocabulary']}.",
        "## Data\n\n" + (settings.training_data or "Not said by the checkpoint."),
        "## Numbers\n\n" + (_numbers(report) if report else "None measured: give `save_pretrained` a report."),
        "## Limits\n\nIt must not be used to identify or judge people, nor for any decision about a person. "
        + ("" if settings.calibration else "The score is a mean probability: it ranks answers and means no more."),
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _results(report: Measurement) -> list[EvalResult]:
    name = ", ".join(report.splits) or report.data or "unnamed data"
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type="referring-image-segmentation",
            dataset_name=name,
            metric_type=metric.lower().replace(" ", "_"),
            metric_name=f"{metric} (protocol {report.protocol.name})",
            metric_value=round(100 * value, 2),
        )
        for metric, value in (("overall IoU", report.overall.overall_iou), ("mean IoU", report.overall.mean_iou))
        if value == value
    ]


def _numbers(report: Measurement) -> str:
    lines = [
        f"Protocol {report.protocol.name} ({report.protocol.scored_at}), {report.photographs} photographs, "
        f"{report.overall.count} expressions, refseg {report.version}, overall IoU / mean IoU in %:",
        "",
        "| expressions | count | overall IoU | mean IoU |",
        "|---|---:|---:|---:|",
    ]
    for group, members in report.scores.items():
        for member, scores in members.items():
            name = member if group == "all" else f"{group}: {member}"
            lines.append(f"| {name} | {scores.count} | {100 * scores.overall_iou:.1f} | {100 * scores.mean_iou:.1f} |")
    return "\n".join(lines)
