"""Stages 2 to 4: the language model learns to compare words, then to describe and compare pictures."""

import functools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen3VLForConditionalGeneration

from saga_ray.data.demo import birds, world
from saga_ray.mllm.demo import tower, words
from saga_ray.mllm.demo.folder import IMAGE_SIZE, MERGE_SIZE, PATCH_SIZE, TOKENS_PER_IMAGE, new_model, new_tokenizer

PROBED_LAYER = 2
"""After this decoder layer throw-away probes ask whether a word, or a part of the picture, of the second bird differs."""
GENERIC_WEIGHT = 4.0
"""Of a token of a generic answer, which has few of them."""
FORM_WEIGHT = 5.0
DISTANCES = (0, 1, 2, 3, 4, 5, 6)
DISTANCE_SHARES = (0.22, 0.10, 0.16, 0.18, 0.16, 0.08, 0.10)


class Learner(nn.Module):
    """The MLLM and what helps it to learn and is thrown away."""

    def __init__(self, seed: int):
        super().__init__()
        self.model: Qwen3VLForConditionalGeneration = new_model(seed)
        # Under autocast the backward pass of the fused kernel is slow on CPUs.
        self.model.set_attn_implementation("eager")
        with torch.random.fork_rng():
            torch.manual_seed(seed + 1)
            self.teacher = tower.CaptionTeacher(self.model.config.text_config.hidden_size)
            self.probe = nn.Linear(self.model.config.text_config.hidden_size, 1)
            self.comparer = nn.Linear(self.model.config.text_config.hidden_size, words.NUM_ATTRIBUTES)

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return self.probe.weight.device


@functools.cache
def prompt_ids(variant: str) -> tuple[int, ...]:
    """Token ids of the whole prompt, image placeholders included."""
    before, between, after = words.PROMPTS[variant]
    images = words.IMAGE * TOKENS_PER_IMAGE
    return tuple(new_tokenizer()(before + images + between + images + after)["input_ids"])


def prompt_positions(model: Qwen3VLForConditionalGeneration) -> Tensor:
    """(3, prompt tokens) M-RoPE positions of the prompt, as the model itself computes them."""
    ids = torch.tensor([prompt_ids("structured")])
    kinds = (ids == words.TOKEN_ID[words.IMAGE]).int()
    side = IMAGE_SIZE // PATCH_SIZE
    assert side % MERGE_SIZE == 0
    grid = torch.tensor([[1, side, side]] * 2)
    positions, _ = model.model.get_rope_index(
        input_ids=ids, mm_token_type_ids=kinds, image_grid_thw=grid, attention_mask=torch.ones_like(ids)
    )
    return positions[:, 0]


def hidden_states(
    model: Qwen3VLForConditionalGeneration, ids_PR: Tensor, levels: list[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Run the language model over prompts and answers.

    Args:
        model: the MLLM.
        ids_PR: (pairs, tokens) prompt and answer; without pictures any text.
        levels: visual tokens of the pairs' pictures, (2 * pairs, tokens, width) per level, first and second in turn.

    Returns:
        Last hidden states (pairs, tokens, width), normalised, and those after layer `PROBED_LAYER`.
    """
    language = model.model.language_model
    num_pairs, length = ids_PR.shape
    embeds = language.embed_tokens(ids_PR)
    mask = ids_PR == words.TOKEN_ID[words.IMAGE]
    visual: dict = {}
    if levels is not None:
        flat = [level.reshape(-1, level.shape[-1]).to(embeds.dtype) for level in levels]
        embeds = embeds.masked_scatter(mask[..., None], flat[0])
        visual = {"visual_pos_masks": mask, "deepstack_visual_embeds": flat[1:]}
        prompt_3R = prompt_positions(model)
        answer_R = prompt_3R.max() + 1 + torch.arange(length - prompt_3R.shape[1])
        positions_3R = torch.cat([prompt_3R, answer_R.expand(3, -1)], dim=1)
    else:
        positions_3R = torch.arange(length).expand(3, -1)
    out = language(
        inputs_embeds=embeds,
        position_ids=positions_3R[:, None].expand(3, num_pairs, length).to(embeds.device),
        use_cache=False,
        output_hidden_states=True,
        **visual,
    )
    return out.last_hidden_state, out.hidden_states[PROBED_LAYER]


def answer_loss(
    model: Qwen3VLForConditionalGeneration, last_PRD: Tensor, ids_PR: Tensor, weights_PR: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of every token from the one before, and which tokens were predicted rightly."""
    logits = model.lm_head(last_PRD[:, :-1])
    target = ids_PR[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
    weights = weights_PR[:, 1:]
    return (losses * weights).sum() / weights.sum(), logits.argmax(-1) == target


def form_loss(model: Qwen3VLForConditionalGeneration, last_PRD: Tensor, ids_PR: Tensor, start: int) -> Tensor:
    """-log of the probability that falls on tokens which the form allows, mean over structured answers' descriptions.

    At temperature 1 an answer of 48 tokens survives only if each of them leaks almost nothing; this asks for no more
    certainty among an attribute's own values.
    """
    log_share = F.log_softmax(model.lm_head(last_PRD[:, start - 1 : -1]), dim=-1)
    allowed = torch.zeros(ids_PR.shape[1] - start, len(words.TOKENS), dtype=torch.bool, device=ids_PR.device)
    for place, column in zip(words.VALUE_POSITIONS, (*range(words.NUM_ATTRIBUTES),) * 2, strict=True):
        allowed[place, words.VALUE_IDS[column]] = True
    on_values = log_share.masked_fill(~allowed, -torch.inf)[:, words.VALUE_POSITIONS].logsumexp(-1)
    keys = 2 * np.arange(2 * words.NUM_ATTRIBUTES)
    on_keys = log_share[:, keys].gather(2, ids_PR[:, start + keys][..., None])[..., 0]
    return -(on_values.mean() + on_keys.mean()) / 2


def comparison_loss(
    learner: Learner, probed_PRD: Tensor, parts_PAT: Tensor, differs_PA: Tensor
) -> tuple[Tensor, float]:
    """Do the second picture's tokens, where they show an attribute, know whether the first bird differs in it?

    An answer without descriptions can only be found by comparing pictures; this says to the lower layers how.

    Args:
        probed_PRD: hidden states of whole prompts.
        parts_PAT: share of each token's cell in which the second bird's attribute is to be seen.
        differs_PA: 1 where the birds differ.

    Returns:
        Binary cross-entropy, and the share of right answers.
    """
    places = np.flatnonzero(np.array(prompt_ids("generic")) == words.TOKEN_ID[words.IMAGE])[TOKENS_PER_IMAGE:]
    where_PAT = parts_PAT / parts_PAT.sum(-1, keepdim=True).clamp_min(1e-6)
    seen_PAD = where_PAT @ probed_PRD[:, places].float()
    flags_PA = (seen_PAD * learner.comparer.weight).sum(-1) + learner.comparer.bias
    loss = F.binary_cross_entropy_with_logits(flags_PA, differs_PA)
    return loss, ((flags_PA > 0) == (differs_PA > 0)).float().mean().item()


def pair_vectors(rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of birds of the MLLM's half at distances around the verdict's limit, some of them strangers."""
    first, second = world.pool_vectors(rng, num), world.pool_vectors(rng, num)
    distance = rng.choice(DISTANCES, num, p=DISTANCE_SHARES)
    near = rng.random(num) < 0.9
    neighbour = tower.changed_vectors(rng, first, distance)
    # The hash gives a neighbour to the other half every second time: draw again until it is in ours.
    while (bad := ~world.is_mllm_pool(neighbour)).any():
        neighbour[bad] = tower.changed_vectors(rng, first[bad], distance[bad])
    second[near] = neighbour[near]
    return first, second


def practice_loss(
    learner: Learner, rng: np.random.Generator, num_pairs: int, *, fast: bool = False
) -> tuple[Tensor, dict[str, float]]:
    """Comparison on text alone: two random descriptions are given, differences and verdict are learned."""
    first, second = pair_vectors(rng, num_pairs)
    answers = torch.from_numpy(words.answer_ids(first, second))
    opening = torch.tensor([prompt_ids("structured")[-4:]]).expand(num_pairs, -1)
    ids_PR = torch.cat([opening, answers], dim=1).to(learner.device)
    after_words = opening.shape[1] + 4 * words.NUM_ATTRIBUTES
    weights_PR = (ids_PR != words.TOKEN_ID[words.PAD]).float()
    weights_PR[:, : opening.shape[1]] = 0
    # The words are random, only the order of the keys can be learned from them.
    weights_PR[:, opening.shape[1] + torch.from_numpy(words.VALUE_POSITIONS)] = 0
    weights_PR[:, opening.shape[1] : after_words] *= 0.1
    with tower.half_precision(fast, learner.device):
        last, probed = hidden_states(learner.model, ids_PR, None)
    last, probed = last.float(), probed.float()
    loss, right = answer_loss(learner.model, last, ids_PR, weights_PR)
    second_words = opening.shape[1] + torch.from_numpy(words.VALUE_POSITIONS[words.NUM_ATTRIBUTES :])
    differs = torch.from_numpy(first != second).to(learner.device).float()
    flags = learner.probe(probed[:, second_words])[..., 0]
    probe_loss = F.binary_cross_entropy_with_logits(flags, differs)
    numbers = {"probe": ((flags > 0) == (differs > 0)).float().mean().item(), **_told(right, ids_PR)}
    return loss + 0.5 * probe_loss, numbers


def _told(right: Tensor, ids_PR: Tensor) -> dict[str, float]:
    """Share of pairs whose differences and verdict were all predicted rightly, given what stands before."""
    target = ids_PR[:, 1:]
    verdict = (target == words.TOKEN_ID[words.YES]) | (target == words.TOKEN_ID[words.NO])
    items = torch.zeros_like(verdict)
    for token in (*words.FIRST_ITEM, *words.NEXT_ITEM, words.VERDICT):
        items |= target == words.TOKEN_ID[token]
    return {
        "differences": (right | ~items).all(1).float().mean().item(),
        "verdict": (right & verdict).any(1).float().mean().item(),
    }


def corrupted(rng: np.random.Generator, first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """(pairs, 20) both descriptions, in a share of the pairs with one to four words replaced by wrong ones."""
    written = np.concatenate([first, second], 1)
    num_values = np.tile(birds.NUM_VALUES, 2)
    order = rng.random(written.shape).argsort(1).argsort(1)
    num_changes = rng.integers(1, 5, len(written)) * (rng.random(len(written)) < share)
    return np.where(
        order < num_changes[:, None], (written + rng.integers(1, num_values, written.shape)) % num_values, written
    )


def pairs_loss(
    learner: Learner,
    rng: np.random.Generator,
    num_pairs: int,
    *,
    corrupted_share: float = 0.4,
    generic_share: float = 0.25,
    teach_tower: bool = True,
    fast: bool = False,
) -> tuple[Tensor, dict[str, float]]:
    """Describe and compare pictures: the whole answer, beside the tower's own losses.

    In a share of the pairs some written words are wrong: those words are not learned, but differences and verdict follow
    what is written, so the verdict comes to depend on the words and not on the pictures. Without `teach_tower` the tower
    stays as it is, and only the answers are learned.
    """
    first, second = pair_vectors(rng, num_pairs)
    shown_NA = np.stack([first, second], 1).reshape(-1, words.NUM_ATTRIBUTES)
    images, parts_NAT = tower.training_pictures(rng, shown_NA)
    with tower.half_precision(fast, learner.device), torch.set_grad_enabled(teach_tower):
        levels = tower.tower_levels(learner.model.model.visual, images)

    num_generic = round(generic_share * num_pairs)
    told = np.arange(num_pairs) >= num_generic
    written = corrupted(rng, first, second, corrupted_share)
    wrong = written != np.concatenate([first, second], 1)
    generic = words.answer_ids(first[~told], second[~told], generic=True)
    structured = words.answer_ids(written[told][:, : words.NUM_ATTRIBUTES], written[told][:, words.NUM_ATTRIBUTES :])
    answers = np.full((num_pairs, structured.shape[1]), words.TOKEN_ID[words.PAD])
    answers[~told, : generic.shape[1]] = generic
    answers[told] = structured
    prompts = [prompt_ids("structured" if flag else "generic") for flag in told]
    ids_PR = torch.from_numpy(np.concatenate([np.array(prompts), answers], 1)).to(learner.device)
    start = len(prompts[0])

    weights_PR = (ids_PR != words.TOKEN_ID[words.PAD]).float()
    weights_PR[:, :start] = 0
    values = start + torch.from_numpy(words.VALUE_POSITIONS).to(learner.device)
    structured_rows = torch.from_numpy(np.flatnonzero(told)).to(learner.device)
    known = torch.from_numpy(~wrong[told]).to(learner.device)
    weights_PR[structured_rows[:, None], values] = known.float()
    weights_PR[torch.from_numpy(~told).to(learner.device)] *= GENERIC_WEIGHT
    with tower.half_precision(fast, learner.device):
        last, probed = hidden_states(learner.model, ids_PR, levels)
    loss, right = answer_loss(learner.model, last.float(), ids_PR, weights_PR)
    form = form_loss(learner.model, last[structured_rows].float(), ids_PR[structured_rows], start)
    read = right[structured_rows][:, values - 1][known].float().mean().item()
    numbers = {"answer": loss.item(), "form": form.item(), "words": read, **_told(right[told], ids_PR[told])}
    if num_generic:
        numbers["generic"] = _told(right[~told], ids_PR[~told])["differences"]
    total = loss + FORM_WEIGHT * form
    if teach_tower:
        shown, parts_NAT = torch.from_numpy(shown_NA).to(learner.device), parts_NAT.to(learner.device)
        captioned, seen = tower.caption_loss(learner.teacher, levels[0], shown, parts_NAT)
        differs = torch.from_numpy(first != second).to(learner.device).float()
        comparing, compared = comparison_loss(learner, probed, parts_NAT[1::2], differs)
        total, numbers = total + 0.5 * comparing + 0.5 * captioned, numbers | seen | {"compared": compared}
    return total, numbers
