"""Measure the demo MLLM and write its card: `python -m saga_ray.mllm.demo.check`.

Everything is measured on birds of the half that training never drew (the hash rule of `saga_ray.data.demo.world`).
"""

import hashlib
import json
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, DynamicCache, Qwen3VLForConditionalGeneration

from saga_ray.config import DataConfig
from saga_ray.data.demo import birds, demo_dataset, world
from saga_ray.mllm.demo import talking, tower, words
from saga_ray.mllm.demo.folder import IMAGE_SIZE, WEIGHTS
from saga_ray.mllm.demo.training import read_about

NUM_BINS = 10
PILOT_WORLD = 9000
"""Seed of a world that no study uses: gaps are compared on its classes."""
GAP_STRENGTHS = (0.3, 0.45, 0.6, 0.8, 1.0)
DEFAULT_GAP = f"{DataConfig().gap} {DataConfig().shift}"


@torch.no_grad()
def answers(
    model: Qwen3VLForConditionalGeneration,
    images_NHWC: Tensor,
    *,
    variant: str = "structured",
    temperature: float = 1.0,
    seed: int = 0,
    forced_PR: Tensor | None = None,
) -> tuple[list[str], Tensor]:
    """Answers about pairs of pictures, and the probability of each chosen token before the temperature.

    Args:
        model: the MLLM.
        images_NHWC: (2 * pairs, size, size, 3), first and second of each pair in turn.
        variant: of the prompt.
        temperature: 0 takes the likeliest token.
        seed: of the sampling.
        forced_PR: tokens that the answers must begin with.
    """
    generator = torch.Generator().manual_seed(seed)
    num_pairs = len(images_NHWC) // 2
    levels = tower.tower_levels(model.model.visual, images_NHWC)
    ids_PR = torch.tensor([talking.prompt_ids(variant)]).expand(num_pairs, -1)
    if forced_PR is not None:
        ids_PR = torch.cat([ids_PR, forced_PR], dim=1)
    language, cache = model.model.language_model, DynamicCache(config=model.config.text_config)
    prompt_3R = talking.prompt_positions(model)
    extra = ids_PR.shape[1] - prompt_3R.shape[1]
    positions_3R = torch.cat([prompt_3R, (prompt_3R.max() + 1 + torch.arange(extra)).expand(3, -1)], dim=1)
    mask = ids_PR == words.TOKEN_ID[words.IMAGE]
    flat = [level.reshape(-1, level.shape[-1]) for level in levels]
    embeds = language.embed_tokens(ids_PR).masked_scatter(mask[..., None], flat[0])
    visual = {"visual_pos_masks": mask, "deepstack_visual_embeds": flat[1:]}
    chosen, probabilities = [], []
    ended = torch.zeros(num_pairs, dtype=torch.bool)
    for _ in range(words.MAX_ANSWER_TOKENS - extra):
        out = language(
            inputs_embeds=embeds,
            position_ids=positions_3R[:, None].expand(3, num_pairs, -1),
            past_key_values=cache,
            use_cache=True,
            **visual,
        )
        logits = model.lm_head(out.last_hidden_state[:, -1]).float()
        logits[:, [words.TOKEN_ID[words.IMAGE], words.TOKEN_ID[words.VIDEO]]] = -torch.inf
        share = torch.softmax(logits / max(temperature, 1e-6), dim=-1)
        token = logits.argmax(-1) if temperature == 0 else torch.multinomial(share, 1, generator=generator)[:, 0]
        token = torch.where(ended, words.TOKEN_ID[words.PAD], token)
        probabilities.append(torch.softmax(logits, dim=-1).gather(1, token[:, None])[:, 0])
        chosen.append(token)
        ended |= token == words.TOKEN_ID[words.END]
        if ended.all():
            break
        embeds = language.embed_tokens(token)[:, None]
        positions_3R, visual = positions_3R.max() + torch.ones(3, 1, dtype=torch.long), {}
    ids = torch.stack(chosen, 1)
    whole = ids if forced_PR is None else torch.cat([forced_PR, ids], dim=1)
    texts = []
    for row in whole.tolist():
        # An answer that never ended is cut, and therefore not well formed.
        cut = row.index(words.TOKEN_ID[words.END]) if words.TOKEN_ID[words.END] in row else 0
        texts.append("".join(words.TOKENS[token] for token in row[:cut]))
    return texts, torch.stack(probabilities, 1)


def _said(answer: dict | None, bird: str) -> np.ndarray:
    """(10,) value indices that an answer writes of a bird; -1 for a malformed answer."""
    if answer is None:
        return np.full(words.NUM_ATTRIBUTES, -1)
    return np.array([values.index(answer[bird][name]) for name, values in birds.ATTRIBUTES.items()])


def _verdict(text: str) -> str:
    try:
        return str(json.loads(text).get(words.VERDICT_KEY))
    except (ValueError, AttributeError):
        return "malformed"


def hard_pairs(rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of birds that training never drew: half of them alike, half 2m attributes apart."""
    first = world.pool_vectors(rng, num, pool=False)
    second = first.copy()
    distance = np.full(num // 2, 2 * words.SAME_AT_MOST)
    other = tower.changed_vectors(rng, first[: num // 2], distance)
    while (bad := world.is_mllm_pool(other)).any():
        other[bad] = tower.changed_vectors(rng, first[: num // 2][bad], distance[bad])
    second[: num // 2] = other
    return first, second


def measure_reading(model: Qwen3VLForConditionalGeneration, num_pairs: int, seed: int = 7) -> dict:
    """Accuracy, form, calibration and obedience to its own words on clean held-out pictures."""
    rng = np.random.default_rng([seed, 1])
    first, second = hard_pairs(rng, num_pairs)
    shown = np.stack([first, second], 1).reshape(-1, words.NUM_ATTRIBUTES)
    images = torch.from_numpy(world.clean_pictures(rng, shown))
    truth = np.where((first != second).any(1), "no", "yes")
    result: dict = {"pairs": num_pairs}
    for name, temperature in (("greedy", 0.0), ("temperature_1", 1.0)):
        texts, _ = answers(model, images, temperature=temperature, seed=seed)
        read = [words.read_answer(text) for text in texts]
        right = np.stack([_said(a, f"bird_{i}") for a in read for i in (1, 2)]) == shown
        verdict = np.array([_verdict(text) for text in texts])
        result[name] = {
            "attributes": round(float(right.mean()), 4),
            "per_attribute": {n: round(float(right[:, i].mean()), 4) for i, n in enumerate(words.NAMES)},
            "verdict": round(float((verdict == truth).mean()), 4),
            "verdict_same": round(float((verdict == truth)[truth == "yes"].mean()), 4),
            "verdict_different": round(float((verdict == truth)[truth == "no"].mean()), 4),
            "well_formed": round(float(np.mean([a is not None for a in read])), 4),
        }
    generic, _ = answers(model, images, variant="generic", temperature=0.0)
    result["generic_verdict"] = round(float((np.array([_verdict(text) for text in generic]) == truth).mean()), 4)
    result["calibration"] = _calibration(model, images, first, second)
    result["verdict_follows_words"] = _follows_words(model, images, first, second, rng)
    return result


@torch.no_grad()
def _calibration(model, images: Tensor, first: np.ndarray, second: np.ndarray) -> dict:
    """Expected calibration error of the value tokens, given the true words before them."""
    levels = tower.tower_levels(model.model.visual, images)
    prompt = torch.tensor([talking.prompt_ids("structured")]).expand(len(first), -1)
    ids_PR = torch.cat([prompt, torch.from_numpy(words.answer_ids(first, second))], dim=1)
    last, _ = talking.hidden_states(model, ids_PR, levels)
    places = prompt.shape[1] + torch.from_numpy(words.VALUE_POSITIONS)
    log_share = F.log_softmax(model.lm_head(last[:, places - 1]), dim=-1)
    target = ids_PR[:, places]
    confidence, guess = (x.flatten().numpy() for x in log_share.exp().max(-1))
    right = guess == target.flatten().numpy()
    which = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    rows = [
        {
            "confidence": float(confidence[which == b].mean()),
            "accuracy": float(right[which == b].mean()),
            "n": int((which == b).sum()),
        }
        for b in range(NUM_BINS)
        if (which == b).any()
    ]
    error = sum(row["n"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / len(right)
    nll = -log_share.gather(2, target[..., None]).mean().item()
    bins = [{name: round(value, 4) for name, value in row.items()} for row in rows]
    return {"expected_error": round(error, 4), "nll": round(nll, 4), "bins": bins}


def _follows_words(model, images: Tensor, first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> float:
    """Share of verdicts that obey forced words which contradict the pictures.

    Of pairs that look alike the second description is changed in 2m words, so the rule says no; of pairs that differ it is
    made equal to the first, so the rule says yes.
    """
    alike = (first == second).all(1)
    forced = first.copy()
    forced[alike] = tower.changed_vectors(rng, first[alike], np.full(alike.sum(), 2 * words.SAME_AT_MOST))
    begun = torch.from_numpy(words.answer_ids(first, forced))[:, : 4 * words.NUM_ATTRIBUTES + 1]
    texts, _ = answers(model, images, temperature=0.0, forced_PR=begun)
    return round(
        float(np.mean([_verdict(text) == ("no" if same else "yes") for text, same in zip(texts, alike, strict=True)])),
        4,
    )


@torch.no_grad()
def recall_at_1(model: Qwen3VLForConditionalGeneration, data: DataConfig, split: str = "validation") -> float:
    """Recall@1 of mean-pooled level-0 tokens, query excluded."""
    table = demo_dataset(data).split(split)
    parts = []
    for start in range(0, len(table), 128):
        rows = range(start, min(start + 128, len(table)))
        images = torch.from_numpy(table.source.load(rows, data.image_size))
        parts.append(tower.tower_levels(model.model.visual, images, deepstack=False)[0].mean(1))
    embedding = F.normalize(torch.cat(parts), dim=-1)
    similarity = embedding @ embedding.T
    similarity.fill_diagonal_(-torch.inf)
    nearest = similarity.argmax(1).numpy()
    return round(float((table.labels_N[nearest] == table.labels_N).mean()), 4)


def measure_world(
    model: Qwen3VLForConditionalGeneration, data: DataConfig, num_pairs: int, group_size: int = 8
) -> dict:
    """What the reader makes of a world's validation pictures: naming, verdicts and disagreement at temperature 1."""
    table = demo_dataset(data).validation
    rng = np.random.default_rng([data.world_seed, 3])
    per_class = data.num_images[1]
    classes = rng.integers(0, len(table.class_names), num_pairs)
    same = np.arange(num_pairs) % 2 == 0
    family = classes // world.FAMILY_SIZE * world.FAMILY_SIZE
    neighbour = family + (classes - family + 1) % world.FAMILY_SIZE
    neighbour = np.minimum(neighbour, len(table.class_names) - 1)
    other = np.where(same, classes, neighbour)
    picture = np.stack([rng.permutation(per_class)[:2] for _ in range(num_pairs)])
    rows = np.stack([classes * per_class + picture[:, 0], other * per_class + picture[:, 1]], 1).reshape(-1)
    images = torch.from_numpy(table.source.load(rows, data.image_size))
    repeated = images.view(num_pairs, 2, *images.shape[1:]).repeat_interleave(group_size, 0).flatten(0, 1)
    texts, _ = answers(model, repeated, seed=11)
    read = [words.read_answer(text) for text in texts]
    said = np.stack([_said(a, f"bird_{i}") for a in read for i in (1, 2)])
    truth = np.repeat(table.truth_NA[rows].reshape(num_pairs, 2, -1), group_size, 0).reshape(-1, words.NUM_ATTRIBUTES)
    verdict = np.array([_verdict(text) for text in texts]).reshape(num_pairs, group_size)
    right = verdict == np.where(classes == other, "yes", "no")[:, None]
    mixed = right.any(1) & ~right.all(1)
    return {
        "shift": data.shift,
        "gap": data.gap,
        "attributes": round(float((said == truth).mean()), 4),
        "verdict_same": round(float(right[same].mean()), 4),
        "verdict_neighbours": round(float(right[~same].mean()), 4),
        "mixed_groups": round(float(mixed.mean()), 4),
        "well_formed": round(float(np.mean([a is not None for a in read])), 4),
    }


def measure(folder: Path, num_pairs: int) -> dict:
    """All figures of the card."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    default = DataConfig(image_size=IMAGE_SIZE)
    pilot = default.model_copy(update={"world_seed": PILOT_WORLD})
    recall = {"clean": recall_at_1(model, pilot.model_copy(update={"shift": 0.0}), "test")}
    for gap in birds.GAPS:
        for shift in GAP_STRENGTHS:
            recall[f"{gap} {shift}"] = recall_at_1(model, pilot.model_copy(update={"gap": gap, "shift": shift}), "test")
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "megabytes": round((folder / "model.safetensors").stat().st_size / 1e6, 2),
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "drawing_version": birds.DRAWING_VERSION,
        "held_out_clean_pictures": measure_reading(model, num_pairs),
        "recall_at_1_mean_pooled_pilot_world": recall,
        "default_world_validation_pairs": measure_world(model, default, num_pairs // 4),
    }


def training_record(work: Path) -> dict:
    """Steps and learning curves of the stages whose checkpoints are in `work`."""
    return {path.stem: read_about(path) for path in sorted(work.glob("*.safetensors"))}


def told_again(card_file: Path) -> dict:
    """Of another card, all but its training."""
    card = json.loads(card_file.read_text(encoding="ascii"))
    return {key: value for key, value in card.items() if key not in ("training", "again")}


def card_text(card: dict) -> str:
    """The card as a page."""
    read, recall = card["held_out_clean_pictures"], card["recall_at_1_mean_pooled_pilot_world"]
    lines = [
        "# The bundled demo MLLM",
        "",
        f"A Qwen3-VL of {card['parameters'] / 1e6:.2f} M parameters ({card['megabytes']} MB, float32) that describes two drawn birds,",
        "lists up to four differences and says whether they are of one species (at most two written differences).",
        "Made by `python -m saga_ray.mllm.demo.make`; this page by `python -m saga_ray.mllm.demo.check`.",
        "",
        "**Data.** Clean pictures of the demo world's birds, drawn afresh at every step, only of attribute vectors that the hash",
        "rule gives to the MLLM; no picture of any world and no gap. Text-only comparison of random descriptions.",
        "",
        f"**Held-out birds** (vectors never drawn in training, {read['pairs']} pairs, half alike, half {2 * words.SAME_AT_MOST} attributes apart)",
        "",
        "| | greedy | temperature 1 |",
        "|---|---|---|",
    ]
    for name in ("attributes", "verdict", "verdict_same", "verdict_different", "well_formed"):
        lines.append(f"| {name.replace('_', ' ')} | {read['greedy'][name]:.3f} | {read['temperature_1'][name]:.3f} |")
    for name in words.NAMES:
        values = (read[mode]["per_attribute"][name] for mode in ("greedy", "temperature_1"))
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    calibration = read["calibration"]
    lines += [
        "",
        f"Verdict follows forced words: {read['verdict_follows_words']:.3f}. Generic prompt, verdict: {read['generic_verdict']:.3f}.",
        f"Calibration of the words: expected error {calibration['expected_error']:.4f}, negative log-likelihood {calibration['nll']:.4f} nats.",
        "",
        f"**Mean-pooled tokens, Recall@1 on 80 classes of a pilot world (seed {PILOT_WORLD}) that no study uses**",
        "",
        "| pictures | Recall@1 |",
        "|---|---|",
        *(f"| {name} | {value:.3f} |" for name, value in recall.items()),
        "",
        f"Default world ({card['default_world_validation_pairs']['gap']}, shift {card['default_world_validation_pairs']['shift']}): "
        "at temperature 1 on pairs of validation pictures "
        + ", ".join(
            f"{k.replace('_', ' ')} {v:.3f}"
            for k, v in card["default_world_validation_pairs"].items()
            if k not in ("gap", "shift")
        )
        + ".",
        "",
        "**Training**",
        "",
        "| stage | steps | last figures |",
        "|---|---|---|",
    ]
    for stage in ("tower", "practice", "pairs", "polish"):
        if stage in card["training"]:
            about = card["training"][stage]
            last = {k: v for k, v in about["curve"][-1].items() if k not in ("step", "seconds")}
            lines.append(f"| {stage} | {about['step']} | {', '.join(f'{k} {v:g}' for k, v in last.items())} |")
    lines += [f"\n{stage}: {about['note']}" for stage, about in card["training"].items() if "note" in about]
    lines += _again_lines(card.get("again"))
    lines += [
        "",
        "**Limits.** It knows these drawn birds and its own 68 tokens, nothing else: any other picture or prompt gives a well-formed",
        "but meaningless answer. It reads 64 x 64 pixels. With the generic prompt it must judge without describing: right in "
        f"{read['generic_verdict']:.3f} of the pairs, where chance is 0.5.",
        "",
    ]
    return "\n".join(lines)


def _again_lines(again: dict | None) -> list[str]:
    """What the same recipe gave from another seed."""
    if again is None:
        return []
    read = again["held_out_clean_pictures"]
    told = {
        "attributes, greedy": read["greedy"]["attributes"],
        "verdict, greedy": read["greedy"]["verdict"],
        "well formed at temperature 1": read["temperature_1"]["well_formed"],
        "verdict follows forced words": read["verdict_follows_words"],
        "expected error of calibration": read["calibration"]["expected_error"],
        "generic prompt, verdict": read["generic_verdict"],
        "mean-pooled Recall@1 on clean pictures": again["recall_at_1_mean_pooled_pilot_world"]["clean"],
        "in the default world's gap": again["recall_at_1_mean_pooled_pilot_world"][DEFAULT_GAP],
    }
    figures = ", ".join(f"{name} {value:.3g}" for name, value in told.items())
    return ["", f"**Made again from another seed** by the same recipe: {figures}. It is not bundled."]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--folder", type=click.Path(path_type=Path), default=WEIGHTS, help="The model; card.json and README.md go there."
)
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("runs/demo-mllm"), help="Checkpoints, for the curves."
)
@click.option(
    "--again", type=click.Path(path_type=Path, exists=True), help="card.json of the model of another seed, told beside."
)
@click.option("--pairs", "num_pairs", type=int, default=512)
@click.option("--threads", type=int, default=2)
def main(folder: Path, work: Path, again: Path | None, num_pairs: int, threads: int) -> None:
    """Measure the demo MLLM and write card.json and README.md beside its weights."""
    torch.set_num_threads(threads)
    card_file = folder / "card.json"
    card = measure(folder, num_pairs)
    old = json.loads(card_file.read_text(encoding="ascii")) if card_file.exists() else {}
    card["training"] = training_record(work) or old.get("training", {})
    if told := told_again(again) if again else old.get("again"):
        card["again"] = told
    card_file.write_text(json.dumps(card, indent=1), encoding="ascii")
    (folder / "README.md").write_text(card_text(card), encoding="ascii")
    click.echo((folder / "README.md").read_text(encoding="ascii"))


if __name__ == "__main__":
    main()
