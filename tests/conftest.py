"""What several tests need: a checkpoint small enough for every test run."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

SENTENCES = ["the red bag on the left", "a blue cup", "the dog", "the small white cat behind the man"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The folder of a random SHNet for 64-pixel squares, the same in every run.

    Its weights are larger than a fresh network's, so that answers differ between photographs and between
    expressions and are neither empty nor full.
    """
    from tiny import tiny_config

    from refseg.models.interface import TokenBatch
    from refseg.models.shnet import SHNet
    from refseg.words import WordTokenizer

    tokenizer = WordTokenizer.from_expressions(SENTENCES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SHNet(tiny_config(vocabulary=len(tokenizer))).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.kaiming_normal_(parameter, mode="fan_in")
        noise = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        tokens = tokenizer(SENTENCES)
        logits = model(TokenBatch(torch.as_tensor(tokens.ids), torch.as_tensor(tokens.mask)), images=noise).mask_logits
        model.decoder.head.weight /= logits.std()
        model.decoder.head.bias -= logits.median() / logits.std()
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    add_graphs(folder, Path(request.config.cache.mkdir("graphs")))
    return folder


def add_graphs(folder: Path, kept: Path) -> None:
    """Writes the checkpoint's graphs, or takes those of an earlier run of the same sources: it takes ten seconds."""
    from refseg.checkpoints import GRAPHS, find_checkpoint
    from refseg.engines.tracing import write_graphs

    checkpoint = find_checkpoint(folder)
    sources = Path(__file__).parents[1] / "src" / "refseg"
    digest = hashlib.sha256(checkpoint.stamp.encode() + torch.__version__.encode())
    for source in sorted([*(sources / "models").rglob("*.py"), sources / "engines" / "tracing.py"]):
        digest.update(source.read_bytes())
    kept = kept / digest.hexdigest()[:16]
    if not kept.is_dir():
        write_graphs(checkpoint, folder)
        kept.mkdir(parents=True, exist_ok=True)
    for name in GRAPHS:
        if (folder / name).exists():
            shutil.copy(folder / name, kept / name)
        elif (kept / name).exists():
            shutil.copy(kept / name, folder / name)
