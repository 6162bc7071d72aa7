"""Draw birds from attribute words: one lookup per pixel in the label maps of `atlas`, one per label for its colour."""

import functools

import numpy as np

from saga_ray.data.demo import habitats
from saga_ray.data.demo.atlas import (
    ATLAS_REACH,
    BACK,
    BELLY,
    BILL,
    BREAST,
    BREAST_MARK,
    CROWN,
    EYE,
    FACE,
    GLINT,
    LEG,
    NUM_MATERIALS,
    NUM_POSES,
    OUTLINE,
    TAIL,
    WING,
    WING_MARK,
    label_maps,
)
from saga_ray.data.demo.attributes import ATTRIBUTES, NAMES, NUM_VALUES

COLORS = {
    "black": (38, 36, 40),
    "white": (244, 242, 236),
    "red": (206, 44, 38),
    "yellow": (246, 206, 44),
    "blue": (48, 98, 206),
    "brown": (140, 86, 46),
    "green": (66, 146, 66),
    "gray": (142, 146, 152),
}

OUTLINE_RGB = (30, 26, 28)

# Columns of the parameters of one picture, all uniform in [0, 1) (see `draw`).
POSE, FLIP, TURN, SCALE, STRETCH, PLACE_X, PLACE_Y, SCENE, SCENE_X, SCENE_Y, LIGHT, WARMTH, TINT, SHADE, TONE, GRAIN = (
    range(16)
)
NUM_PARAMETERS = 16

GAPS = ("washed-out", "filter", "quarter-turn", "washed-out+quarter-turn", "filter+quarter-turn")
DRAWING_VERSION = 3
"""Part of every fingerprint; raise it with any change that moves a pixel."""
SMALL_ATLAS = 256


@functools.cache
def _value_colors() -> np.ndarray:
    """(attributes, values, 3) colour of each colour word, zeros for shapes and patterns."""
    table = np.zeros((len(NAMES), NUM_VALUES.max(), 3), np.float32)
    for column, values in enumerate(ATTRIBUTES.values()):
        for index, value in enumerate(values):
            table[column, index] = COLORS.get(value, (0, 0, 0))
    return table


def _palettes(attributes: np.ndarray, parameters: np.ndarray, size: int) -> np.ndarray:
    """(pictures, labels) packed RGBA, alpha 0 where a label shows nothing."""
    num = len(attributes)
    colors = _value_colors()

    def word(name):
        column = NAMES.index(name)
        return colors[column, attributes[:, column]]

    rgb = np.zeros((num, NUM_MATERIALS, 3), np.float32)
    rgb[:, OUTLINE] = OUTLINE_RGB
    rgb[:, CROWN] = word("crown color")
    # The face is nobody's attribute: a pale tone that varies from picture to picture.
    rgb[:, FACE] = np.array([226, 206, 178], np.float32) * (0.80 + 0.28 * parameters[:, TONE, None])
    rgb[:, BREAST] = word("breast color")
    rgb[:, BREAST_MARK] = (52, 38, 34)
    rgb[:, BELLY] = word("belly color")
    rgb[:, WING] = word("wing color")
    rgb[:, WING_MARK] = (250, 244, 226)
    rgb[:, BACK] = word("wing color") * 0.80
    rgb[:, TAIL] = word("wing color") * 0.88 + 14
    rgb[:, BILL] = word("bill color")
    rgb[:, LEG] = word("leg color")
    rgb[:, EYE] = (16, 14, 14)
    rgb[:, GLINT] = (255, 255, 255)
    rgba = np.zeros((num, NUM_MATERIALS, 4), np.uint8)
    rgba[..., :3] = np.clip(rgb, 0, 255)
    rgba[:, 1:, 3] = 255
    return rgba.view(np.uint32)[..., 0][np.arange(num)[:, None], _materials(attributes, size)]


def _materials(attributes: np.ndarray, size: int) -> np.ndarray:
    """(pictures, labels) what each label of the atlas shows in each picture."""
    _, group, materials = label_maps(size)
    value = np.where(group >= 0, attributes[:, np.maximum(group, 0)], 0)
    return materials[np.arange(len(group)), value]


_SHOWN_BY = {
    CROWN: ("crown color",),
    BREAST: ("breast color", "breast pattern"),
    BREAST_MARK: ("breast color", "breast pattern"),
    BELLY: ("belly color",),
    WING: ("wing color", "wing pattern"),
    WING_MARK: ("wing color", "wing pattern"),
    TAIL: ("tail shape",),
    BILL: ("bill shape", "bill color"),
    LEG: ("leg color",),
}


def turn_of(gap: str, shift: float) -> float:
    """By how much a gap turns every picture, in radians."""
    return 0.5 * np.pi * shift if gap.endswith("quarter-turn") else 0.0


def parts(
    attributes: np.ndarray, parameters: np.ndarray, cells: int, *, points: int = 32, turn: float = 0.0
) -> np.ndarray:
    """Where each attribute is to be seen: its share of every cell of a square grid.

    Args:
        attributes, parameters: as for `draw`.
        cells: cells along an edge.
        points: samples along an edge of the picture, a multiple of `cells`.
        turn: of the pictures, see `turn_of`.

    Returns:
        (pictures, 10, cells, cells) float32 in [0, 1].
    """
    shows = np.zeros((NUM_MATERIALS, len(NAMES)), np.float32)
    for material, names in _SHOWN_BY.items():
        shows[material, [NAMES.index(name) for name in names]] = 1.0
    num = len(attributes)
    parameters = parameters.astype(np.float32)
    index = _atlas_index(*_atlas_maps(parameters, turn), 0.0, 0.0, points, SMALL_ATLAS)
    labels = label_maps(SMALL_ATLAS)[0][index]
    material = _materials(attributes, SMALL_ATLAS)[np.arange(num)[:, None, None], labels]
    per = points // cells
    return shows[material].reshape(num, cells, per, cells, per, len(NAMES)).mean((2, 4)).transpose(0, 3, 1, 2)


def draw(
    attributes: np.ndarray,
    parameters: np.ndarray,
    habitat: np.ndarray,
    size: int = 64,
    *,
    gap: str = "washed-out",
    shift: float = 0.0,
) -> np.ndarray:
    """Draw one bird per row; a picture depends on its own row alone.

    Args:
        attributes: (pictures, 10) value indices in the order of `ATTRIBUTES`.
        parameters: (pictures, NUM_PARAMETERS) uniform numbers in [0, 1): pose, place, light and so on.
        habitat: (pictures,) index into `habitats.NAMES`.
        size: edge of the square picture in pixels.
        gap: what `shift` does to every picture alike, one of `GAPS`.
        shift: strength of the gap in [0, 1]; 0 draws clean pictures.

    Returns:
        (pictures, size, size, 3) uint8.
    """
    pictures = np.empty((len(attributes), size, size, 3), np.uint8)
    chunk = max(1, 16 * 64 * 64 // (size * size))  # a chunk's arrays fit the cache
    parameters = parameters.astype(np.float32)
    for start in range(0, len(attributes), chunk):
        rows = slice(start, start + chunk)
        pictures[rows] = _draw_chunk(attributes[rows], parameters[rows], habitat[rows], size, gap, shift)
    return pictures


def _draw_chunk(attributes, parameters, habitat, size, gap, shift):
    num = len(attributes)
    atlas_size = SMALL_ATLAS if size <= 96 else 768
    labels, _, _ = label_maps(atlas_size)
    palettes = _palettes(attributes, parameters, atlas_size)
    first_label = (np.arange(num, dtype=np.int32) * palettes.shape[1])[:, None, None]
    palettes = palettes.reshape(-1)

    p = parameters
    axis = ((np.arange(size) + 0.5) / size * 2.0 - 1.0).astype(np.float32)
    turn = np.float32(turn_of(gap, shift))
    to_bird, pose = _atlas_maps(p, turn)
    total = np.zeros((num, size, size, 4), np.uint16)
    for dy in (-0.25, 0.25):
        for dx in (-0.25, 0.25):  # four samples per pixel
            index = _atlas_index(to_bird, pose, dx, dy, size, atlas_size)
            color = palettes[labels[index] + first_label]
            total += color[..., None].view(np.uint8)
    scene = habitats.scenes(habitat, p[:, SCENE], p[:, SCENE_X], p[:, SCENE_Y], size, float(turn))

    alpha = total[..., 3:].astype(np.float32) * np.float32(1 / 1020)
    # Lit from above: the bird's own upper side is brighter.
    height = (to_bird[:, 1, 0, None, None] * axis + to_bird[:, 1, 1, None, None] * axis[:, None])[..., None]
    shade = 1.0 - (0.05 + 0.20 * p[:, SHADE, None, None, None]) * (height + 0.1)
    image = total[..., :3].astype(np.float32) * np.float32(0.25) * shade
    image += scene * (1.0 - alpha)

    light = 0.84 + 0.28 * p[:, LIGHT]
    warm, tint = 0.10 * (p[:, WARMTH] - 0.5), 0.06 * (p[:, TINT] - 0.5)
    image *= np.stack([light * (1 + warm), light * (1 + tint), light * (1 - warm)], 1)[:, None, None, :]
    image = _apply_gap(image, gap, shift)
    image += habitats.grain(p[:, GRAIN], size) * np.float32(3.0 + 3.0 * shift)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _atlas_maps(p, turn):
    """(pictures, 2, 3) maps from picture to bird coordinates, and (pictures, 1, 1) the pose."""
    to_bird = _inverse_affine(p, 0.72 + 0.20 * p[:, SCALE], np.float32(turn))
    return to_bird, np.minimum((p[:, POSE] * NUM_POSES).astype(np.int32), NUM_POSES - 1)[:, None, None]


def _atlas_index(to_bird, pose, dx, dy, size, atlas_size):
    """(pictures, size, size) places in the flat atlas, each pixel sampled (dx, dy) pixels from its centre."""
    axis = ((np.arange(size) + 0.5) / size * 2.0 - 1.0).astype(np.float32)
    px, py = axis + np.float32(2 * dx / size), axis + np.float32(2 * dy / size)
    # From picture coordinates to atlas cells, with the pose's map chosen by an offset.
    cells = to_bird * np.float32(atlas_size / 2 / ATLAS_REACH)
    cells[:, :, 2] += np.float32(atlas_size / 2)
    index = _cell(cells[:, 1], px, py, atlas_size)
    index += pose * atlas_size
    index *= atlas_size
    index += _cell(cells[:, 0], px, py, atlas_size)
    return index


def _inverse_affine(p, scale, turn):
    """(pictures, 2, 3) maps from picture to bird coordinates: place, turn, size, stretch and flip undone."""
    angle = (p[:, TURN] - 0.5) * 0.50
    room = np.maximum(0.02, 1.0 - 1.02 * scale)
    centre_x = (2 * p[:, PLACE_X] - 1) * room
    centre_y = (2 * p[:, PLACE_Y] - 1) * room + 0.05
    stretch = 0.92 + 0.16 * p[:, STRETCH]
    flip = np.where(p[:, FLIP] < 0.5, 1.0, -1.0).astype(np.float32)
    # The systematic turn acts on the whole picture, so it comes first.
    cos_t, sin_t = np.cos(turn), np.sin(turn)
    cos, sin = np.cos(angle), np.sin(angle)
    rows_x = np.stack([cos * flip, sin * flip], 1) / (scale * stretch)[:, None]
    rows_y = np.stack([-sin, cos], 1) / (scale / stretch)[:, None]
    linear = np.stack([rows_x, rows_y], 1)
    offset = -np.einsum("nij,nj->ni", linear, np.stack([centre_x, centre_y], 1))
    world_turn = np.array([[cos_t, sin_t], [-sin_t, cos_t]], np.float32)
    return np.concatenate([linear @ world_turn, offset[:, :, None]], 2).astype(np.float32)


def _cell(affine, px, py, atlas_size):
    """(pictures, size, size) atlas row or column of every pixel of the affine map's one output."""
    position = (affine[:, 1, None] * py + affine[:, 2, None])[:, :, None] + (affine[:, 0, None] * px)[:, None, :]
    np.clip(position, 0, atlas_size - 1, out=position)
    return position.astype(np.int32)


def _apply_gap(image, gap, shift):
    """The systematic gap: the same for every picture of a world, and one that an encoder could undo."""
    color = gap.split("+")[0]
    if shift == 0 or color == "quarter-turn":  # the turn was applied to the geometry
        return image
    gray = np.array([0.30, 0.59, 0.11], np.float32)
    if color == "washed-out":  # saturation and contrast fall towards a pale paper
        saturation, contrast = 1.0 - 0.92 * shift, 1.0 - 0.60 * shift
        matrix = contrast * (saturation * np.eye(3) + (1 - saturation) * np.outer(gray, np.ones(3)))
        return image @ matrix.astype(np.float32) + np.float32((1 - contrast) * 190)
    if color == "filter":  # the channels are turned about the gray axis, as by a wrong film
        angle = shift * 2 * np.pi / 3
        cos, sin, third = np.cos(angle), np.sin(angle), 1 / 3
        a, b = cos + third * (1 - cos), third * (1 - cos)
        root = np.sqrt(third) * sin
        matrix = np.array([[a, b - root, b + root], [b + root, a, b - root], [b - root, b + root, a]])
        return image @ matrix.T.astype(np.float32)
    raise ValueError(f"data.gap: {gap!r} is not known; choose one of {', '.join(GAPS)}")
