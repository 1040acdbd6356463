"""Training: a recipe becomes a checkpoint, by `transformers.Trainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import set_seed

from refseg.checkpoints import find_checkpoint
from refseg.data.expressions.generate import mirror_expression
from refseg.data.parses import Parses
from refseg.data.sources import load_rows
from refseg.data.table import Row, by_photograph
from refseg.errors import RefsegError
from refseg.evaluation.protocols import find_protocol
from refseg.models.interface import ReferringConfig, ReferringNetwork
from refseg.models.reading import read_network, read_start
from refseg.models.registry import build_network
from refseg.models.vectors import add_words
from refseg.training.backbones import load_backbone, name_scores
from refseg.training.recipe import Recipe, load_recipe
from refseg.training.trainer import build_trainer, checkpoints, write_model, writing
from refseg.training.word_vectors import learn_vectors, read_sentences, start_words, vector_words
from refseg.words import WordTokenizer, split_words


def run(path: Path, overrides: Sequence[str] = (), resume: bool = False) -> Path:
    """Trains what the recipe describes and returns the folder of the finished model.

    `resume` continues from the last complete checkpoint in the recipe's output folder. Raises RefsegError.
    """
    recipe = load_recipe(path, overrides)
    output = Path(recipe.training.output)
    checkpoint = _checkpoint(output, resume)
    validation = recipe.training.validation
    if validation:
        find_protocol(validation.protocol)
    set_seed(recipe.training.seed)
    photos = [list(photo) for spec in recipe.data.train for photo in by_photograph(_rows(recipe, spec))]
    unseen = [row for spec in recipe.data.val for row in _rows(recipe, spec)] if validation else []
    model, tokenizer = _start(recipe, [row.expression for photo in photos for row in photo])
    if unseen and recipe.word_vectors and not recipe.start:  # their words are understood, as those of the test will be
        words = {word for row in unseen for word in split_words(tokenizer.tokenizer, row.expression)}
        tokenizer = add_words(model, tokenizer, Path(recipe.word_vectors), words)
    if model.config.parses:
        tokenizer.parse = _parses([row for photo in photos for row in photo] + unseen)
    trainer = build_trainer(recipe, model, tokenizer, photos, unseen, checkpoint)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()} if recipe.start_share else {}
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if validation and trainer.last_read != trainer.state.global_step:
        trainer.evaluate()  # the last step is scored as well
    if trainer.is_world_process_zero():
        best = trainer.best_checkpoint
        if best is not None and trainer.state.best_global_step != trainer.state.global_step:
            model.load_state_dict(read_network(find_checkpoint(best)).state_dict())
        _blend(model, before, recipe.start_share)
        with writing(output):
            write_model(output, model, tokenizer)
    return output


def _checkpoint(output: Path, resume: bool) -> Path | None:
    """The checkpoint to continue from. Raises RefsegError if there is one but no `resume`, or the other way round."""
    if output.exists() and not output.is_dir():
        raise RefsegError(f"training.output: {output} is a file; name a folder")
    checkpoint = next(reversed(checkpoints(output)), None)
    if resume and checkpoint is None:
        raise RefsegError(f"{output} holds no checkpoint to resume; start without --resume")
    if checkpoint is not None and not resume:
        raise RefsegError(f"{output} already holds a run; add --resume, or --training.output ANOTHER_FOLDER")
    return checkpoint


def _rows(recipe: Recipe, spec: str) -> list[Row]:
    return load_rows(spec, per_photo=recipe.data.per_photo, seed=recipe.training.seed)


def _parses(rows: Sequence[Row]) -> Parses:
    """The trees of the rows that have one, for their sentences and the mirrored ones."""
    parses = Parses()
    for row in rows:
        if row.heads:
            parses.add_tree(mirror_expression(row.expression), row.heads)
    parses.add(rows)
    return parses


def _start(recipe: Recipe, expressions: Sequence[str]) -> tuple[ReferringNetwork, WordTokenizer]:
    """The network and vocabulary that training starts from: the recipe's `start`, or fresh ones."""
    sentences = [sentence for file in recipe.sentences for sentence in read_sentences(Path(file))]
    vectors = Path(recipe.word_vectors) if recipe.word_vectors else None
    started, known = read_start(recipe.start) if recipe.start else (None, None)
    if known is None:
        max_words = recipe.model.get("max_words", ReferringConfig.max_words)
        letters = recipe.tokens == "letters"
        tokenizer = WordTokenizer.from_expressions(expressions, sentences, max_words=max_words, letters=letters)
    else:
        tokenizer = known.extended(expressions, sentences)
    if vectors:
        tokenizer = tokenizer.extended(vector_words(vectors, tokenizer))
    if started is None:
        model = new_model(recipe, tokenizer, [*expressions, *sentences])
    else:
        model = continued_model(recipe, tokenizer, started)
    if vectors:
        table = model.text_encoder.embedding.weight.data
        start_words(table, vectors, tokenizer, len(known) if known else 0, recipe.unknown_vector)
        model.config.word_vectors = model.config.word_vectors or vectors.name
    if started is None:
        name_scores(model, tokenizer)
    return model, tokenizer


def new_model(recipe: Recipe, tokenizer: WordTokenizer, sentences: Sequence[str]) -> ReferringNetwork:
    """The recipe's network. Its weights are random, except those that `backbone_weights` and `sentences` initialise."""
    model = build_network({**recipe.model, "vocabulary": len(tokenizer)})
    if recipe.backbone_weights:
        load_backbone(model, recipe.backbone_weights)
    model.image_encoder.keep_statistics = model.config.freeze_backbone or recipe.backbone_weights is not None
    if recipe.sentences:
        model.text_encoder.embedding.weight.data[1:] = learn_vectors(sentences, tokenizer, model.config.word_size)[1:]
    return model


def continued_model(recipe: Recipe, tokenizer: WordTokenizer, started: ReferringNetwork) -> ReferringNetwork:
    """A trained network with room for the tokenizer's new words, which start as copies of the unknown word."""
    changes = {"vocabulary": len(tokenizer), "calibration": None}  # the score of another network means something else
    settings = started.config.to_dict() | recipe.model | changes
    model = build_network(settings)
    state = started.state_dict()
    table = started.text_encoder.embedding.weight.data
    unknown = table[tokenizer.unknown_id].expand(len(tokenizer) - len(table), -1)
    state["text_encoder.embedding.weight"] = torch.cat([table, unknown])
    try:
        model.load_state_dict(state)
    except RuntimeError as fault:
        raise RefsegError(
            f"start: {recipe.start} has other shapes than model asks for; leave sizes out of model "
            f"({str(fault).splitlines()[1].strip()})"
        ) from fault
    return model


def _blend(model: ReferringNetwork, before: Mapping[str, Tensor], share: float) -> None:
    """Mixes a share of the weights that training started from into the weights at its end."""
    after = model.state_dict()
    for name, tensor in before.items():
        if tensor.is_floating_point():  # batch norm's counter of batches is not one
            after[name].lerp_(tensor.to(after[name]), share)
