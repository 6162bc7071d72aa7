"""From a configuration or a finished run to a vocabulary's score and to the truth about its words."""

from __future__ import annotations

import logging

from saga_ray.config import RunConfig
from saga_ray.mllm.text import TokenTexts
from saga_ray.train.progress import Progress, Silent
from saga_ray.vocab.asking import Sample, answers, finished_run, panel, same_data, trained_encoder
from saga_ray.vocab.score import LEAST_BITS, VocabularyScore, score_vocabulary
from saga_ray.vocab.truth import Truth, compare, match, rightly_named

logger = logging.getLogger(__name__)


def measure_score(
    config: RunConfig,
    sample: Sample,
    *,
    run: str | None = None,
    least_bits: float = LEAST_BITS,
    progress: Progress | None = None,
) -> VocabularyScore:
    """Ask the MLLM about pairs, and judge its vocabulary by the answers.

    Args:
        run: Folder of the run through whose trained encoder it looks; by default through the initial one.
    """
    progress = progress or Silent()
    asked = panel(config, sample, progress)
    encoder = asked.initial if run is None else trained_encoder(run)
    progress.stage(f"asking about {sample.num_pairs} pairs of {sample.split} classes")
    result = answers(encoder, asked, progress)
    texts = TokenTexts(asked.engine.mllm.tokenizer)
    return score_vocabulary(result, asked.questions, asked.engine.prompt, texts, least_bits=least_bits)


def measure_truth(run: str, sample: Sample, *, data_root: str | None = None, progress: Progress | None = None) -> Truth:
    """How many true attributes the MLLM names rightly through a run's encoder, as it began and as it was trained.

    Both are asked about the same pictures with the same random numbers.

    Raises:
        ValueError: if the run is not finished, or data set and vocabulary share no attributes.
    """
    progress = progress or Silent()
    config = finished_run(run, data_root)
    trained = trained_encoder(run)
    asked = panel(config, sample, progress)
    if not same_data(run, asked.dataset):
        logger.warning(
            "%s was measured on other data than is there now; what follows is about the data that is there", run
        )
    prompt, questions = asked.engine.prompt, asked.questions
    matched = match(asked.dataset, prompt)
    labels_N = asked.dataset.split(sample.split).labels_N[questions.rows_N]
    counts, well_formed = [], []
    for when, encoder in (("before", asked.initial), ("after", trained)):
        progress.stage(f"asking about {sample.num_pairs} pairs of {sample.split} classes, {when} training")
        result = answers(encoder, asked, progress)
        counts.append(rightly_named(result, questions, prompt, matched.columns, labels_N))
        well_formed.append(float(result.well_formed_PG.double().mean()))
    (before_CA, known_CA), (after_CA, _) = counts
    rows = compare(list(matched.columns), before_CA, after_CA, known_CA)
    return Truth(rows, matched.left_out, (well_formed[0], well_formed[1]))
