"""The trainer: its batches, its losses, its checkpoints."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from refseg.checkpoints import Settings, find_checkpoint
from refseg.data.table import Row
from refseg.engines.torch import TorchEngine
from refseg.errors import RefsegError, first_line
from refseg.evaluation.evaluate import evaluate as answer_and_score
from refseg.evaluation.protocols import find_protocol
from refseg.models.interface import ReferringNetwork, TokenBatch
from refseg.models.reading import quiet_transformers, read_network
from refseg.segmenter import Segmenter
from refseg.training.alignment import Alignment
from refseg.training.batches import Collate, PhotoDataset, PhotoSampler, scaled_grid
from refseg.training.losses import choice_loss, mask_loss, outline
from refseg.training.recipe import MEASURES, Recipe, TrainingRecipe
from refseg.words import WordTokenizer

log = logging.getLogger(__name__)


def computes_in_bf16() -> bool:
    """Whether the machine has instructions for bfloat16. Without them it is many times slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return True
    log.warning("this machine has no bfloat16 instructions; computing in float32")
    return False


def computes_in_fp16() -> bool:
    """Whether the machine can train in float16 with a scaled loss, which needs a GPU."""
    if torch.cuda.is_available():
        return True
    log.warning("training in float16 needs a GPU; computing in float32")
    return False


def lay_channels_last(network: nn.Module) -> None:
    """Lays out convolutions as SFM lays out its pixels, channels last. The copies would cost a sixth of a CPU step."""
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
        self.recipe = recipe

    def forward(
        self,
        images: Tensor,
        ids: Tensor,
        mask: Tensor,
        photo_of: Tensor,
        targets: Tensor,
        rivals: Tensor,
        answered: Tensor,
        heads: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch. Its parts are those of `Sample`; `photo_of` (B,) is the image of each expression."""
        images = images.contiguous(memory_format=torch.channels_last)
        features = self.model.encode(images, scaled_grid(images.shape[-1], self.model.config))
        losses = []
        if self.recipe.alignment_weight:
            words = self.model.text_encoder(ids, mask)
            scores = self.alignment(self.model.places(features), words, mask, photo_of)
            coarse = [F.interpolate(maps, scores.shape[-2:], mode="area") for maps in (targets, rivals)]
            losses.append(self.recipe.alignment_weight * self._loss(scores, *coarse))
        if answered.any():
            tokens = TokenBatch(ids[answered], mask[answered], None if heads is None else heads[answered])
            prediction = self.model(tokens, features=features, photo_of=photo_of[answered])
            targets, rivals = targets[answered], rivals[answered]
            logits = self._fitted(prediction.mask_logits, targets)
            losses.append(self._loss(logits, targets, rivals))
            on_the_way = [(logits, targets) for logits in prediction.auxiliary.values()]
            on_the_way += [(logits, outline(targets)) for logits in prediction.outlines.values()]
            for logits, aim in on_the_way:
                losses.append(self.recipe.auxiliary_weight * mask_loss(self._fitted(logits, aim), aim, 0.0))
        return {"loss": torch.stack(losses).sum()}

    def _fitted(self, mask_logits: Tensor, targets: Tensor) -> Tensor:
        """Mask logits (B, 1, h, w) at the size of the targets."""
        if mask_logits.shape[-2:] == targets.shape[-2:]:
            return mask_logits
        return F.interpolate(mask_logits.float(), targets.shape[-2:], mode="bilinear", align_corners=False)

    def _loss(self, mask_logits: Tensor, targets: Tensor, rivals: Tensor) -> Tensor:
        loss = mask_loss(mask_logits, targets, self.recipe.dice_weight)
        if self.recipe.choice_weight:
            loss = loss + self.recipe.choice_weight * choice_loss(mask_logits, targets, rivals)
        return loss


class Batches(DataLoader[Any]):
    """A loader that counts the seconds for which training waits for the next batch."""

    waited = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches, None)
            except RefsegError as fault:  # a worker adds its traceback in front
                raise RefsegError(
                    str(fault).strip().splitlines()[-1].removeprefix("refseg.errors.RefsegError: ")
                ) from None
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch


class RecipeTrainer(Trainer):
    """`Trainer` with our batches, validation, a rate of its own for the backbone, and checkpoints that are models."""

    control: Any

    def __init__(self, recipe: TrainingRecipe, batches: Batches, tokenizer: WordTokenizer, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.recipe, self.batches, self.tokenizer = recipe, batches, tokenizer
        self.since = time.perf_counter()
        self.last_read = -1
        """The step of the last reading of the validation data."""

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
                    decays = parameter.ndim > 1 or self.recipe.decay_vectors
                    decay = self.recipe.weight_decay if decays else 0.0
                    groups.setdefault((rate, decay), []).append(parameter)
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                [{"params": p, "lr": lr, "weight_decay": wd} for (lr, wd), p in groups.items()], fused=True
            )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Makes the schedule of all phases, so that a run that ends early can be resumed."""
        return super().create_scheduler(max(num_training_steps, whole_run(self.recipe)), optimizer)

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

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Scores the validation data. A new best becomes a checkpoint. Too many readings without one end the run."""
        validation = self.recipe.validation
        assert validation is not None
        network = self.model.model
        engine = TorchEngine(network, str(self.args.device))
        report = answer_and_score(
            Segmenter(engine, self.tokenizer, Settings.from_config(network.config.to_dict())),
            self.eval_dataset,
            progress=False,
            max_photos=validation.photos,
            protocol=find_protocol(validation.protocol),
            share=self.args.world_size > 1,
        )
        scores = {f"eval_{measure}": getattr(report.overall, measure) for measure in MEASURES}
        self.log(scores)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        self.last_read = self.state.global_step
        score, best = scores[f"eval_{validation.measure}"], self.state.best_metric
        if best is None or score > best:
            self.state.best_metric, self.state.best_global_step = score, self.state.global_step
            self.control.should_save = True
        elif validation.patience is not None:
            fruitless = (self.state.global_step - (self.state.best_global_step or 0)) // validation.every
            self.control.should_training_stop |= fruitless >= validation.patience
        return scores

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint of the best reading so far. None without validation."""
        step = self.state.best_global_step
        return None if step is None else Path(self.args.output_dir) / f"checkpoint-{step}"

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Writes the network as a model's folder, together with what only training needs."""
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            write_model(folder, self.model.model, self.tokenizer)
            save_file(_contiguous(self.model.alignment), folder / ALIGNMENT)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder, trainee = Path(resume_from_checkpoint), cast(Trainee, model or self.model)
        trainee.model.load_state_dict(read_network(find_checkpoint(folder)).state_dict())
        trainee.alignment.load_state_dict(load_file(folder / ALIGNMENT))

    def _save_checkpoint(self, *arguments: Any, **keywords: Any) -> None:
        """Makes every checkpoint-N complete, even if the run is killed: it is written in `unfinished`, then renamed."""
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
                if old != self.best_checkpoint:
                    shutil.move(old, unfinished)
            shutil.rmtree(unfinished)


PLATEAU = {"mode": "max", "patience": 2, "threshold": 1e-3, "min_lr": 1e-8}
"""PyTorch's ReduceLROnPlateau, with the values of the code that SHNet's authors released."""
KEPT = 2
"""The number of checkpoints that are kept, besides the best one."""
ALIGNMENT = "alignment.safetensors"
"""The file of the alignment's weights in a checkpoint. The finished model has none."""


def write_model(folder: Path, network: ReferringNetwork, tokenizer: WordTokenizer) -> None:
    """Writes what `refseg.load` reads."""
    with quiet_transformers():
        network.save_pretrained(folder, state_dict=_contiguous(network))
    tokenizer.save_pretrained(folder)


def _contiguous(module: nn.Module) -> dict[str, Tensor]:
    """The weights in the layout that safetensors accepts, which `lay_channels_last` changed for some."""
    return {name: tensor.contiguous() for name, tensor in module.state_dict().items()}


def checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    named = (path for path in output.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit())
    return sorted((path for path in named if path.is_dir()), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns the libraries' different exceptions for a full disk into a RefsegError."""
    try:
        yield
    except Exception as fault:
        raise RefsegError(
            f"{folder} cannot be written ({first_line(fault)}); make room there and add --resume"
        ) from fault


def whole_run(training: TrainingRecipe) -> int:
    """The steps of all phases."""
    return sum(phase.steps for phase in training.phases)


def build_trainer(
    recipe: Recipe,
    model: ReferringNetwork,
    tokenizer: WordTokenizer,
    photos: Sequence[list[Row]],
    unseen: Sequence[Row],
    checkpoint: Path | None,
) -> RecipeTrainer:
    """The trainer of a recipe. `photos` has the rows of each photograph to learn from, `unseen` those of validation."""
    training = recipe.training
    steps = training.max_steps or whole_run(training)
    arguments = _arguments(training, steps)
    dataset = PhotoDataset(photos, recipe.data, training, model.config)
    done = _step(checkpoint) if checkpoint else 0
    sampler = PhotoSampler(dataset.parts, training, range(done, steps), arguments.process_index, arguments.world_size)
    batches = Batches(
        dataset,
        batch_sampler=sampler,
        collate_fn=Collate(tokenizer, recipe.data.word_dropout),
        num_workers=training.workers,
        persistent_workers=training.workers > 0,
        # A generator of its own: otherwise it would draw from the one whose state a resumed run restores.
        generator=torch.Generator().manual_seed(training.seed + done),
    )
    return RecipeTrainer(
        training, batches, tokenizer, model=Trainee(model, training), args=arguments, eval_dataset=unseen
    )


def _arguments(training: TrainingRecipe, steps: int) -> TrainingArguments:
    validation = training.validation
    here = get_available_reporting_integrations()
    if missing := [name for name in training.report_to if name not in here]:
        raise RefsegError(
            f"training.report_to: {missing[0]} is not installed, or transformers does not know it; "
            f"install it or choose among: {', '.join(here) or 'none'}"
        )
    return TrainingArguments(
        output_dir=training.output,
        max_steps=steps,
        gradient_accumulation_steps=training.accumulate,
        learning_rate=training.learning_rate,
        lr_scheduler_type="polynomial" if training.schedule == "polynomial" else "reduce_lr_on_plateau",
        lr_scheduler_kwargs=PLATEAU if training.schedule == "plateau" else {"power": training.power, "lr_end": 1e-8},
        warmup_steps=min(training.warmup_steps, whole_run(training) // 2),
        max_grad_norm=training.max_grad_norm,
        bf16=training.bf16 and computes_in_bf16(),
        fp16=training.fp16 and computes_in_fp16(),
        use_cpu=not torch.cuda.is_available(),
        save_steps=training.save_steps,
        eval_strategy="no" if validation is None else "steps",
        eval_steps=None if validation is None else validation.every,
        metric_for_best_model=None if validation is None else f"eval_{validation.measure}",
        logging_steps=training.log_steps,
        report_to=training.report_to or "none",
        seed=training.seed,
        ignore_data_skip=True,  # the sampler starts at the checkpoint's step
        ddp_find_unused_parameters=True,
        remove_unused_columns=False,
    )
