"""Stage 1: the vision tower learns from captions and names, as real towers do.

Every picture is told from the others of its batch by its caption, where captions come in fours that differ in one or two
attributes; beside it one query per attribute reads the attribute's value from the tokens, and is told where to look: the
drawing knows where each part of the bird is. Caption encoder and queries are thrown away.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from saga_ray.data.demo import birds, world
from saga_ray.mllm.demo.folder import IMAGE_SIZE, MERGE_SIZE, PATCH_SIZE

NUM_NEIGHBOURS = 4
"""Pictures whose captions differ in one or two attributes."""
MAX_SHIFT_PIXELS = 4
GRID = IMAGE_SIZE // (PATCH_SIZE * MERGE_SIZE)
"""Visual tokens along an edge of the picture."""


def half_precision(enabled: bool, device: torch.device) -> torch.autocast:
    """Products in bfloat16 while training, where the processor has units for them; weights stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def patches(images_NHWC: Tensor) -> Tensor:
    """(N, patches, 3 * patch * patch) of one frame, in the order of the Qwen3-VL processor, scaled to [-1, 1]."""
    num, height, width, _ = images_NHWC.shape
    rows, columns = height // PATCH_SIZE // MERGE_SIZE, width // PATCH_SIZE // MERGE_SIZE
    pixels = images_NHWC.float().div(127.5).sub(1.0)
    pixels = pixels.view(num, rows, MERGE_SIZE, PATCH_SIZE, columns, MERGE_SIZE, PATCH_SIZE, 3)
    return pixels.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(num, rows * columns * MERGE_SIZE**2, -1)


def tower_levels(visual: Qwen3VLVisionModel, images_NHWC: Tensor, *, deepstack: bool = True) -> list[Tensor]:
    """All levels of visual tokens, equal to the model's own forward but with attention over images in one batch.

    The model's own code attends image by image, which on a CPU costs more than the arithmetic.

    Args:
        visual: the vision tower of the MLLM.
        images_NHWC: uint8 pictures of one size.
        deepstack: also run the mergers of levels 1, 2, 3.

    Returns:
        Tensors (N, tokens, width): level 0, then the DeepStack levels.
    """
    weight = visual.patch_embed.proj.weight  # (width, 3, frames, patch, patch); a still picture repeats its frame
    x_NTD = F.linear(
        patches(images_NHWC.to(weight.device)).to(weight.dtype), weight.sum(2).flatten(1), visual.patch_embed.proj.bias
    )
    num, num_patches, width = x_NTD.shape
    side = int(num_patches**0.5)
    index = torch.arange(num_patches).view(side // MERGE_SIZE, side // MERGE_SIZE, MERGE_SIZE, MERGE_SIZE)
    grid = torch.arange(side * side).view(side // MERGE_SIZE, MERGE_SIZE, side // MERGE_SIZE, MERGE_SIZE)
    raster = torch.empty(num_patches, dtype=torch.long)
    raster[index.flatten()] = grid.permute(0, 2, 1, 3).flatten()
    assert visual.num_grid_per_side == side, "the position grid fits the pictures, so that nothing is interpolated"
    x_NTD = x_NTD + visual.pos_embed(raster.to(x_NTD.device))
    positions = torch.stack([raster // side, raster % side], dim=-1).to(x_NTD.device)
    cos, sin = (table[:, None] for table in visual.rotary_pos_emb(x_NTD, positions))
    levels = []
    for number, block in enumerate(visual.blocks):
        heads = block.attn.num_heads
        qkv = block.attn.qkv(block.norm1(x_NTD)).view(num, num_patches, 3, heads, width // heads)
        query, key, value = (_rotate(qkv[:, :, 0], cos, sin), _rotate(qkv[:, :, 1], cos, sin), qkv[:, :, 2])
        # Plain products: under autocast the backward pass of the fused kernel is slow on CPUs.
        scores = (query * (width // heads) ** -0.5).transpose(1, 2) @ key.permute(0, 2, 3, 1)
        mixed = torch.softmax(scores.float(), dim=-1).to(value.dtype) @ value.transpose(1, 2)
        x_NTD = x_NTD + block.attn.proj(mixed.transpose(1, 2).reshape(num, num_patches, width))
        x_NTD = x_NTD + block.mlp(block.norm2(x_NTD))
        if deepstack and number in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[list(visual.deepstack_visual_indexes).index(number)]
            levels.append(merger(x_NTD).view(num, -1, visual.config.out_hidden_size))
    return [visual.merger(x_NTD).view(num, -1, visual.config.out_hidden_size), *levels]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: (N, patches, heads, head width)."""
    low, high = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-high, low], dim=-1) * sin.to(x.dtype)


class CaptionTeacher(nn.Module):
    """Caption encoder and one query per attribute; both serve pre-training only."""

    def __init__(self, width: int):
        super().__init__()
        self.offsets = [int(n) for n in np.concatenate([[0], np.cumsum(birds.NUM_VALUES)[:-1]])]
        num_words = int(birds.NUM_VALUES.sum())
        self.word = nn.Embedding(num_words, width)
        self.caption_mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.log_scale = nn.Parameter(torch.tensor(2.5))
        self.query = nn.Parameter(torch.randn(len(birds.NAMES), width) * width**-0.5)
        self.key_value = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Parameter(torch.randn(num_words, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(num_words))

    def captions(self, attributes_NA: Tensor) -> Tensor:
        """(N, width) embeddings of captions, l2-normalised."""
        sum_ND = self.word(attributes_NA + torch.tensor(self.offsets, device=attributes_NA.device)).sum(1)
        return F.normalize(sum_ND + self.caption_mlp(sum_ND), dim=-1)

    def read(self, tokens_NTD: Tensor) -> tuple[list[Tensor], Tensor]:
        """For each attribute the scores (N, values) that its query reads from the tokens, and where all queries looked.

        Where: logarithms of the weights, (N, attributes, tokens).
        """
        key, value = self.key_value(self.norm(tokens_NTD)).chunk(2, dim=-1)
        log_weights_NAT = torch.log_softmax(torch.einsum("ad,ntd->nat", self.query, key), dim=-1)
        read_NAD = log_weights_NAT.exp() @ value
        bounds = [*self.offsets, len(self.head)]
        logits = [
            read_NAD[:, a] @ self.head[bounds[a] : bounds[a + 1]].T + self.bias[bounds[a] : bounds[a + 1]]
            for a in range(len(birds.NAMES))
        ]
        return logits, log_weights_NAT


def caption_loss(
    teacher: CaptionTeacher, tokens_NTD: Tensor, attributes_NA: Tensor, parts_NAT: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Contrastive loss of mean-pooled tokens against captions, naming loss of the queries, and loss on where they look.

    Args:
        parts_NAT: share of each token's cell in which the attribute is to be seen.

    Returns:
        The sum of the three, and what to log: the parts, `match` (picture finds its caption), `named` (attributes read
        rightly) and `worst` of the attributes.
    """
    tokens_NTD = tokens_NTD.float()
    image_ND = F.normalize(tokens_NTD.mean(1), dim=-1)
    scores = teacher.log_scale.exp().clamp(max=50.0) * image_ND @ teacher.captions(attributes_NA).T
    target = torch.arange(len(scores), device=scores.device)
    contrast = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
    logits, log_weights_NAT = teacher.read(tokens_NTD)
    where_NAT = parts_NAT / parts_NAT.sum(-1, keepdim=True).clamp_min(1e-6)
    looking = (torch.xlogy(where_NAT, where_NAT) - where_NAT * log_weights_NAT).sum(-1).mean()
    naming = sum(F.cross_entropy(logit, attributes_NA[:, a]) for a, logit in enumerate(logits)) / len(logits)
    named_A = [(logit.argmax(-1) == attributes_NA[:, a]).float().mean().item() for a, logit in enumerate(logits)]
    match = (scores.argmax(1) == target).float().mean().item()
    parts = {"contrast": contrast.item(), "naming": naming.item(), "looking": looking.item()}
    accuracies = {"match": match, "named": float(np.mean(named_A)), "worst": float(min(named_A))}
    return contrast + naming + looking, parts | accuracies


def neighbour_vectors(rng: np.random.Generator, num: int) -> np.ndarray:
    """(num, 10) vectors of the MLLM's half in groups of `NUM_NEIGHBOURS` that differ in one or two attributes."""
    groups = world.pool_vectors(rng, num // NUM_NEIGHBOURS)
    members = [groups]
    for _ in range(NUM_NEIGHBOURS - 1):
        member = changed_vectors(rng, groups, rng.integers(1, 3, len(groups)))
        while not (pool := world.is_mllm_pool(member)).all():
            bad = ~pool
            member[bad] = changed_vectors(rng, groups[bad], rng.integers(1, 3, bad.sum()))
        members.append(member)
    return np.stack(members, 1).reshape(-1, groups.shape[1])


def changed_vectors(rng: np.random.Generator, vectors: np.ndarray, num_changes: np.ndarray) -> np.ndarray:
    """Copies of the vectors with `num_changes` random attributes set to another value each."""
    order = rng.random(vectors.shape).argsort(1).argsort(1)
    step = rng.integers(1, birds.NUM_VALUES, vectors.shape)
    return np.where(order < num_changes[:, None], (vectors + step) % birds.NUM_VALUES, vectors)


def training_pictures(rng: np.random.Generator, attributes_NA: np.ndarray) -> tuple[Tensor, Tensor]:
    """Fresh pictures as the tower sees them: clean, half of them moved by a few pixels with repeated borders.

    Returns:
        Images (N, size, size, 3) uint8, and where each attribute is seen: (N, 10, tokens) shares of each token's cell.
    """
    parameters = world.any_parameters(rng, len(attributes_NA))
    pictures = world.clean_pictures(rng, attributes_NA, parameters=parameters)
    size, points = pictures.shape[1], IMAGE_SIZE // 2
    parts = birds.parts(attributes_NA, parameters, points, points=points)
    # Whole points, so that parts move with the pixels.
    reach = MAX_SHIFT_PIXELS // 2
    moved = rng.integers(-reach, reach + 1, (len(pictures), 2)) * (rng.random((len(pictures), 1)) < 0.5)
    pictures = _moved(pictures, 2 * moved, size)
    parts = _moved(parts.transpose(0, 2, 3, 1), moved, points)
    per = points // GRID
    cells = parts.reshape(len(parts), GRID, per, GRID, per, -1).mean((2, 4))
    return torch.from_numpy(pictures), torch.from_numpy(cells.reshape(len(parts), GRID * GRID, -1).transpose(0, 2, 1))


def _moved(pictures: np.ndarray, moved: np.ndarray, size: int) -> np.ndarray:
    axis = np.arange(size)
    rows = np.clip(axis + moved[:, :1], 0, size - 1)
    columns = np.clip(axis + moved[:, 1:], 0, size - 1)
    return pictures[np.arange(len(pictures))[:, None, None], rows[:, :, None], columns[:, None, :]]
