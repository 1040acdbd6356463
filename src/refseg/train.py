"""Training: a recipe becomes a checkpoint, by `transformers.Trainer`."""

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
from transformers import Trainer, TrainingArguments, set_seed

from refseg.checkpoints import load_shnet
from refseg.data.batches import Collate, PhotoDataset, PhotoSampler, scaled_grid
from refseg.data.sources import load_rows
from refseg.data.table import Row, by_photograph
from refseg.errors import RefsegError, first_line
from refseg.losses import choice_loss, mask_loss
from refseg.model.fusion import average_word, last_word
from refseg.model.image_encoder import Levels
from refseg.model.packed import packs
from refseg.model.position import pixels_position
from refseg.model.shnet import SHNet, SHNetConfig
from refseg.recipe import Recipe, TrainingRecipe, load_recipe
from refseg.vectors import learn_vectors, read_sentences, read_vectors
from refseg.words import WordTokenizer

log = logging.getLogger(__name__)


def run(path: Path, overrides: Sequence[str] = (), resume: bool = False) -> Path:
    """Trains what the recipe describes and returns the folder of the finished model.

    `resume` goes on from the last whole checkpoint in the recipe's output folder. Raises RefsegError.
    """
    recipe = load_recipe(path, overrides)
    output = Path(recipe.training.output)
    if output.exists() and not output.is_dir():
        raise RefsegError(f"training.output: {output} is a file; name a folder")
    checkpoint = next(reversed(_checkpoints(output)), None)
    if resume and checkpoint is None:
        raise RefsegError(f"{output} holds no checkpoint to resume; start without --resume")
    if checkpoint is not None and not resume:
        raise RefsegError(f"{output} already holds a run; add --resume, or --training.output ANOTHER_FOLDER")
    set_seed(recipe.training.seed)
    photos = [
        photo
        for spec in recipe.data.train
        for photo in by_photograph(load_rows(spec, per_photo=recipe.data.per_photo, seed=recipe.training.seed))
    ]
    expressions = [row.expression for photo in photos for row in photo]
    sentences = [sentence for file in recipe.sentences for sentence in read_sentences(Path(file))]
    if recipe.start:
        started, vocabulary = load_shnet(recipe.start)
        tokenizer = vocabulary.extended(expressions, sentences)
        model = continued_model(recipe, tokenizer, started)
    else:
        tokenizer = WordTokenizer.from_expressions(expressions, sentences, max_words=recipe.model.get("max_words", 25))
        model = new_model(recipe, tokenizer, expressions + sentences)
    trainer = build_trainer(recipe, model, tokenizer, photos, checkpoint)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()} if recipe.start_share else {}
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    after = model.state_dict()
    for name, tensor in before.items():
        if tensor.is_floating_point():  # batch norm's counter of batches is none
            after[name].lerp_(tensor.to(after[name]), recipe.start_share)
    if trainer.is_world_process_zero():
        with _writing(output):
            model.save_pretrained(output)
            tokenizer.save_pretrained(output)
    return output


def new_model(recipe: Recipe, tokenizer: WordTokenizer, sentences: Sequence[str]) -> SHNet:
    """The recipe's network, initialised as it says."""
    model = SHNet(SHNetConfig(**{**recipe.model, "vocabulary": len(tokenizer)}))
    if recipe.backbone_weights:
        load_backbone(model, recipe.backbone_weights)
    model.image_encoder.keep_statistics = model.config.freeze_backbone or recipe.backbone_weights is not None
    embedding = model.text_encoder.embedding.weight.data
    if recipe.sentences:
        embedding[1:] = learn_vectors(sentences, tokenizer, model.config.word_size)[1:]
    if recipe.word_vectors:
        vectors = read_vectors(Path(recipe.word_vectors), tokenizer.vocabulary, model.config.word_size)
        log.info("word vectors for %d of %d words", len(vectors), len(tokenizer))
        for index, vector in vectors.items():
            embedding[index] = vector
    return model


def continued_model(recipe: Recipe, tokenizer: WordTokenizer, started: SHNet) -> SHNet:
    """A trained network with room for the tokenizer's new words, which start as the unknown word does."""
    changes = {"vocabulary": len(tokenizer), "calibration": None}  # another network's score means something else
    settings = started.config.to_dict() | recipe.model | changes
    model = SHNet(SHNetConfig(**settings))
    state = started.state_dict()
    words = "text_encoder.embedding.weight"
    unknown = state[words][tokenizer.unknown_id]
    state[words] = torch.cat([state[words], unknown.expand(len(tokenizer) - len(state[words]), -1)])
    try:
        model.load_state_dict(state)
    except RuntimeError as fault:
        raise RefsegError(
            f"start: {recipe.start} has other shapes than model asks for; leave sizes out of model "
            f"({str(fault).splitlines()[1].strip()})"
        ) from fault
    return model


def load_backbone(model: SHNet, name: str) -> None:
    """Initialises the backbone from a transformers checkpoint: a folder or a hub id."""
    net: Any = model.image_encoder.backbone.net
    try:
        trained, report = type(net).from_pretrained(
            name, config=net.config, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as fault:
        raise RefsegError(f"backbone_weights: {name} cannot be read ({first_line(fault)})") from fault
    # A classifier's checkpoint has no norms for the levels of a backbone; they start at one and zero.
    own = net.state_dict()
    lacking = sorted(key for key in report["missing_keys"] if key in own and "hidden_states_norms." not in key)
    if lacking:
        raise RefsegError(f"backbone_weights: {name} does not fit the backbone; it lacks {lacking[0]}")
    net.load_state_dict({key: value for key, value in trained.state_dict().items() if key in own})


def computes_in_bf16() -> bool:
    """Whether the machine has instructions for bfloat16; without them it is many times slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if packs(torch.bfloat16) and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return True
    log.warning("this machine has no bfloat16 instructions; computing in float32")
    return False


class Alignment(nn.Module):
    """A cheap teacher for both encoders: one feature a pixel, one a sentence, and their product on the grid.

    It is trained beside the network and left behind afterwards. Batch norm on both sides takes away what all sentences,
    and all pixels, have in common; without it their differences are learnt several times more slowly.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.common = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(0.1)
        )
        self.pixels = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.anything = nn.Conv2d(width, 1, 1)
        self.sentence = nn.Linear(2 * width, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.scale = nn.Parameter(torch.tensor(width**-0.5))
        self.bias = nn.Parameter(torch.tensor(-2.0))

    def forward(self, levels: Levels, words: Tensor, mask: Tensor, photo_of: Tensor) -> Tensor:
        """Mask logits (B, 1, h, w) on the grid."""
        joint = torch.stack(levels).sum(dim=0)  # (I, C, h, w)
        c, h, w = joint.shape[1:]
        common = self.common(joint + pixels_position(h, w, c, joint).T.view(c, h, w))
        pixels, anything = self.pixels(common).flatten(2), self.anything(common).flatten(2)  # (I, C, h·w), (I, 1, h·w)
        read = self.sentence(torch.cat([last_word(words, mask), average_word(words, mask)], dim=1))
        sentences = self.norm(read) if len(read) > 1 else read  # (B, C); one sentence alone has no statistics
        # A product per photograph instead of a copy of its pixels per expression, whose gradient is slow on a CPU.
        own = sentences.split(photo_of.bincount(minlength=len(pixels)).tolist())
        scores = [s @ p * self.scale + a for s, p, a in zip(own, pixels, anything, strict=True)]
        return torch.cat(scores).view(-1, 1, h, w) + self.bias


def lay_channels_last(network: nn.Module) -> None:
    """SFM gives its pixels channels last; convolutions that keep them so spare copies, a sixth of a step on a CPU."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


class Trainee(nn.Module):
    """The network with its losses, as `Trainer` wants it."""

    def __init__(self, model: SHNet, recipe: TrainingRecipe) -> None:
        super().__init__()
        self.model = model
        self.alignment = Alignment(model.config.width)
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
        levels = self.model.encode(images, scaled_grid(images.shape[-1], config.image_size, config.grid))
        losses = []
        if self.alignment_weight:
            scores = self.alignment(levels, self.model.text_encoder(ids, mask), mask, photo_of)
            coarse = [F.adaptive_avg_pool2d(shares, scores.shape[-1]) for shares in (targets, rivals)]
            losses.append(self.alignment_weight * self._loss(scores, *coarse))
        if answered.any():
            logits = self.model(ids[answered], mask[answered], levels=levels, photo_of=photo_of[answered])
            losses.append(self._loss(logits, targets[answered], rivals[answered]))
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
        with _writing(unfinished):
            super()._save_checkpoint(*arguments, **keywords)
            self.accelerator.wait_for_everyone()
        self.args.output_dir = str(output)
        if self.is_world_process_zero():
            name = f"checkpoint-{self.state.global_step}"
            (unfinished / name).rename(output / name)
            for old in _checkpoints(output)[:-KEPT]:
                shutil.move(old, unfinished)
            shutil.rmtree(unfinished)


KEPT = 2
"""Checkpoints that stay."""


def _checkpoints(output: Path) -> list[Path]:
    """The oldest first."""
    named = (path for path in output.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit())
    return sorted((path for path in named if path.is_dir()), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """The libraries below have an exception each for a disk that is full."""
    try:
        yield
    except Exception as fault:
        raise RefsegError(
            f"{folder} cannot be written ({first_line(fault)}); make room there and add --resume"
        ) from fault


def build_trainer(
    recipe: Recipe, model: SHNet, tokenizer: WordTokenizer, photos: Sequence[list[Row]], checkpoint: Path | None
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
