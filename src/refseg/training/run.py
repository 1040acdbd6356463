"""Training: a recipe becomes a checkpoint, by `transformers.Trainer`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import set_seed

from refseg.checkpoints import load_network
from refseg.data.sources import load_rows
from refseg.data.table import by_photograph
from refseg.errors import RefsegError
from refseg.models.interface import ReferringNetwork
from refseg.models.registry import build_network
from refseg.training.backbones import load_backbone
from refseg.training.recipe import Recipe, load_recipe
from refseg.training.trainer import build_trainer, checkpoints, writing
from refseg.training.word_vectors import learn_vectors, read_sentences, read_vectors
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
    checkpoint = next(reversed(checkpoints(output)), None)
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
        started, vocabulary = load_network(recipe.start)
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
        with writing(output):
            model.save_pretrained(output)
            tokenizer.save_pretrained(output)
    return output


def new_model(recipe: Recipe, tokenizer: WordTokenizer, sentences: Sequence[str]) -> ReferringNetwork:
    """The recipe's network, initialised as it says."""
    model = build_network({**recipe.model, "vocabulary": len(tokenizer)})
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


def continued_model(recipe: Recipe, tokenizer: WordTokenizer, started: ReferringNetwork) -> ReferringNetwork:
    """A trained network with room for the tokenizer's new words, which start as the unknown word does."""
    changes = {"vocabulary": len(tokenizer), "calibration": None}  # another network's score means something else
    settings = started.config.to_dict() | recipe.model | changes
    model = build_network(settings)
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
