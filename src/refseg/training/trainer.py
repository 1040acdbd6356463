"""The trainer: its batches, its losses, its checkpoints."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from refseg.data.table import Row
from refseg.engines.packed import packs
from refseg.errors import RefsegError, first_line
from refseg.models.interface import ReferringNetwork, TokenBatch
from refseg.training.alignment import Alignment
from refseg.training.batches import Collate, PhotoDataset, PhotoSampler, scaled_grid
from refseg.training.losses import choice_loss, mask_loss
from refseg.training.recipe import Recipe, TrainingRecipe
from refseg.words import WordTokenizer

log = logging.getLogger(__name__)


def computes_in_bf16() -> bool:
    """Whether the machine has instructions for bfloat16; without them it is many times slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if packs(torch.bfloat16) and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return True
    log.warning("this machine has no bfloat16 instructions; computing in float32")
    return False


def lay_channels_last(network: nn.Module) -> None:
    """SFM gives its pixels channels last; convolutions that keep them so spare copies, a sixth of a step on a CPU."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


class Trainee(nn.Module):
    """The network with its losses, as `Trainer` wants it."""

    def __init__(self, model: ReferringNetwork, recipe: TrainingRecipe) -> None:
        super().__init__()
        self.model = model
        self.alignment = Alignment(model.config.width, model.text_encoder.width)
        lay_channels_last(self)
        self.alignment_weight = recipe.alignment_weight
        self.dice_weight, self.choice_weight = recipe.dice_weight, recipe.choice_weight

    def forward(
        self,
        images: Tensor,
        ids: Tensor,
        mask: Tensor,
        photo_of: Tensor,
        targets: Tensor,
        rivals: Tensor,
        answered: Tensor,
    ) -> dict[str, Tensor]:
        config = self.model.config
        images = images.contiguous(memory_format=torch.channels_last)
        features = self.model.encode(images, scaled_grid(images.shape[-1], config.image_size, config.grid))
        losses = []
        if self.alignment_weight:
            words = self.model.text_encoder(ids, mask)
            scores = self.alignment(self.model.places(features), words, mask, photo_of)
            coarse = [F.adaptive_avg_pool2d(shares, scores.shape[-1]) for shares in (targets, rivals)]
            losses.append(self.alignment_weight * self._loss(scores, *coarse))
        if answered.any():
            tokens = TokenBatch(ids[answered], mask[answered])
            prediction = self.model(tokens, features=features, photo_of=photo_of[answered])
            losses.append(self._loss(prediction.mask_logits, targets[answered], rivals[answered]))
        return {"loss": torch.stack(losses).sum()}

    def _loss(self, mask_logits: Tensor, targets: Tensor, rivals: Tensor) -> Tensor:
        loss = mask_loss(mask_logits, targets, self.dice_weight)
        if self.choice_weight:
            loss = loss + self.choice_weight * choice_loss(mask_logits, targets, rivals)
        return loss


class Batches(DataLoader[Any]):
    """Keeps count of the seconds that the training waited for the next batch."""

    waited = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches, None)
            except RefsegError as fault:  # a worker puts its traceback in front
                raise RefsegError(
                    str(fault).strip().splitlines()[-1].removeprefix("refseg.errors.RefsegError: ")
                ) from None
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch


class RecipeTrainer(Trainer):
    """`Trainer` with our batches, a rate of its own for the backbone, whole checkpoints and finite numbers."""

    def __init__(self, recipe: TrainingRecipe, batches: Batches, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.recipe, self.batches = recipe, batches
        self.since = time.perf_counter()

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self.batches

    def log(self, logs: dict[str, float], *arguments: Any, **keywords: Any) -> None:
        """Adds `waiting`, the share of the time since the last line that was spent waiting for data."""
        now = time.perf_counter()
        if "loss" in logs:
            logs["waiting"] = round(self.batches.waited / max(now - self.since, 1e-9), 3)
            self.batches.waited, self.since = 0.0, now
        super().log(logs, *arguments, **keywords)

    def create_optimizer(self, *_: Any, **__: Any) -> torch.optim.Optimizer:
        if getattr(self, "optimizer", None) is None:
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    of_backbone = ".backbone." in name
                    rate = self.recipe.backbone_learning_rate if of_backbone else self.recipe.learning_rate
                    decay = self.recipe.weight_decay if parameter.ndim > 1 else 0.0
                    groups.setdefault((rate, decay), []).append(parameter)
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                [{"params": p, "lr": lr, "weight_decay": wd} for (lr, wd), p in groups.items()], fused=True
            )
        return self.optimizer

    def compute_loss(self, *arguments: Any, **keywords: Any) -> Any:
        loss = super().compute_loss(*arguments, **keywords)
        value = loss[0] if isinstance(loss, tuple) else loss
        if not torch.isfinite(value):
            raise self._not_finite(f"loss is {value.item()}")
        return loss

    def _not_finite(self, what: str) -> RefsegError:
        return RefsegError(
            f"the {what} at step {self.state.global_step}; lower the learning rate and resume from the last checkpoint"
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """safetensors writes contiguous tensors alone; see `Trainee` for those that are not."""
        state = state_dict or self.model.state_dict()
        super()._save(output_dir, {name: tensor.contiguous() for name, tensor in state.items()})

    def _save_checkpoint(self, *arguments: Any, **keywords: Any) -> None:
        """What is called checkpoint-N is whole, wherever the run is killed: until it is, it lies in `unfinished`."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise self._not_finite("weights are not finite")
        output = Path(self.args.output_dir)
        unfinished = output / "unfinished"
        self.args.output_dir = str(unfinished)
        with writing(unfinished):
            super()._save_checkpoint(*arguments, **keywords)
            self.accelerator.wait_for_everyone()
        self.args.output_dir = str(output)
        if self.is_world_process_zero():
            name = f"checkpoint-{self.state.global_step}"
            (unfinished / name).rename(output / name)
            for old in checkpoints(output)[:-KEPT]:
                shutil.move(old, unfinished)
            shutil.rmtree(unfinished)


KEPT = 2
"""Checkpoints that stay."""


def checkpoints(output: Path) -> list[Path]:
    """The oldest first."""
    named = (path for path in output.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit())
    return sorted((path for path in named if path.is_dir()), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """The libraries below have an exception each for a disk that is full."""
    try:
        yield
    except Exception as fault:
        raise RefsegError(
            f"{folder} cannot be written ({first_line(fault)}); make room there and add --resume"
        ) from fault


def build_trainer(
    recipe: Recipe,
    model: ReferringNetwork,
    tokenizer: WordTokenizer,
    photos: Sequence[list[Row]],
    checkpoint: Path | None,
) -> RecipeTrainer:
    training, config = recipe.training, model.config
    steps = training.max_steps or sum(phase.steps for phase in training.phases)
    arguments = TrainingArguments(
        output_dir=training.output,
        max_steps=steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"power": training.power, "lr_end": 1e-8},
        warmup_steps=min(training.warmup_steps, steps // 2),
        max_grad_norm=training.max_grad_norm,
        bf16=training.bf16 and computes_in_bf16(),
        use_cpu=not torch.cuda.is_available(),
        save_steps=training.save_steps,
        logging_steps=training.log_steps,
        report_to=["tensorboard"],
        seed=training.seed,
        ignore_data_skip=True,  # the sampler itself starts at the checkpoint's step
        ddp_find_unused_parameters=True,
        remove_unused_columns=False,
    )
    done = _step(checkpoint) if checkpoint else 0
    dataset = PhotoDataset(photos, training.phases, recipe.data, config.image_size, config.grid, training.seed)
    sampler = PhotoSampler(
        len(dataset),
        training.phases,
        range(done, steps),
        training.seed,
        arguments.process_index,
        arguments.world_size,
    )
    batches = Batches(
        dataset,
        batch_sampler=sampler,
        collate_fn=Collate(tokenizer, recipe.data.word_dropout),
        num_workers=training.workers,
        persistent_workers=training.workers > 0,
        # Its own, or it would draw from the generator whose state a resumed run restores.
        generator=torch.Generator().manual_seed(training.seed + done),
    )
    return RecipeTrainer(training, batches, model=Trainee(model, training), args=arguments)
