"""A checkpoint for others: written with a model card, and uploaded to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCardData

from refseg.checkpoints import quiet_transformers
from refseg.errors import RefsegError, first_line
from refseg.evaluation.report import GROUPS, Report
from refseg.models.shnet import SHNet
from refseg.words import WordTokenizer

if TYPE_CHECKING:
    from refseg.segmenter import Segmenter

CARD = "README.md"
_PAPER = "Comprehensive Multi-Modal Interactions for Referring Image Segmentation (Findings of ACL 2022)"


def save(
    segmenter: Segmenter, folder: str | PathLike[str], report: Report | None, license: str, name: str = ""
) -> None:
    """See `Segmenter.save_pretrained`; `name` is the model's on its card, by default the folder's."""
    model, tokenizer = segmenter.model, segmenter.tokenizer
    if not isinstance(model, SHNet) or not isinstance(tokenizer, WordTokenizer):
        raise RefsegError(f"a {model.config.model_type} is not saved by refseg; save it with transformers")
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (Path(folder) / CARD).write_text(model_card(model, report, license, name or Path(folder).name), encoding="utf-8")


def push(segmenter: Segmenter, name: str, report: Report | None, license: str, private: bool) -> str:
    """See `Segmenter.push_to_hub`."""
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as scratch:
        save(segmenter, scratch, report, license, name)
        try:
            api = HfApi()
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=address.repo_id, folder_path=scratch)
        except Exception as fault:  # no login, no network, no permission, a malformed id
            raise RefsegError(
                f"the hub did not take {name} ({first_line(fault)}); run hf auth login and try again"
            ) from fault
    return str(address)


def model_card(model: SHNet, report: Report | None, license: str, name: str) -> str:
    """The card: metadata that the hub reads, then what a person wants to know. No number without a report."""
    config = model.config
    metadata = ModelCardData(
        license=license,
        library_name="refseg",
        pipeline_tag="image-segmentation",
        tags=["referring-image-segmentation", "shnet"],
        language="en",
        model_name=name,
        eval_results=None if report is None else _results(report),
    )
    backbone = config.backbone_config.model_type
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {name}",
        "Finds in a photograph what a sentence describes and returns its mask.",
        f'```python\nimport refseg\n\nsegmenter = refseg.load("{name}")\n'
        'segmenter("street.jpg", "the red bag").save("mask.png")\n```',
        f"SHNet ({_PAPER}) with a {backbone} encoder: {model.num_parameters() / 1e6:.1f} million parameters, input "
        f"{config.image_size}×{config.image_size}, at most {config.max_words} words of a vocabulary of "
        f"{config.vocabulary}.",
        "## Data\n\n" + (config.training_data or "Not said by the checkpoint."),
        "## Numbers\n\n" + (_numbers(report) if report else "None measured: give `save_pretrained` a report."),
        "## Limits\n\nIt must not be used to identify or judge people, nor for any decision about a person. "
        + ("" if config.calibration else "The score is a mean probability: it ranks answers and means no more."),
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _results(report: Report) -> list[EvalResult]:
    name = ", ".join(report.splits) or report.data or "unnamed data"
    scores = report.overall
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type="referring-image-segmentation",
            dataset_name=name,
            metric_type=metric.lower().replace(" ", "_"),
            metric_name=f"{metric} (protocol {report.protocol.name})",
            metric_value=round(100 * value, 2),
        )
        for metric, value in (("overall IoU", scores.overall_iou), ("mean IoU", scores.mean_iou))
        if value == value
    ]


def _numbers(report: Report) -> str:
    lines = [
        f"Protocol {report.protocol.name} ({report.protocol.scored_at}), {report.photographs} photographs, "
        f"{report.overall.count} expressions, refseg {report.version}, overall IoU / mean IoU in %:",
        "",
        "| expressions | count | overall IoU | mean IoU |",
        "|---|---:|---:|---:|",
    ]
    for group in GROUPS:
        for member, scores in report.scores.get(group, {}).items():
            name = member if group == "all" else f"{group}: {member}"
            lines.append(f"| {name} | {scores.count} | {100 * scores.overall_iou:.1f} | {100 * scores.mean_iou:.1f} |")
    return "\n".join(lines)
