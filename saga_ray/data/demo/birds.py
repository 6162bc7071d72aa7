"""Draw birds from attribute words: signed distances once per pose, then one lookup per pixel.

A pose's bird is drawn once, in its own coordinates, as a map of labels. A label says which material a pixel shows for
every value of the one shape or pattern attribute that decides it (a pixel of the tail region may be tail, outline or
nothing, depending on the tail's shape). A picture is then two table lookups per sample: pixel -> label -> colour.
"""

import functools

import numpy as np

from saga_ray.data.demo import habitats

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "crown color": ("black", "white", "red", "yellow", "blue"),
    "breast color": ("white", "yellow", "red", "blue", "brown"),
    "belly color": ("white", "yellow", "red", "gray", "black"),
    "wing color": ("brown", "blue", "green", "gray", "black"),
    "breast pattern": ("solid", "spotted", "striped", "barred"),
    "wing pattern": ("solid", "spotted", "barred", "edged"),
    "tail shape": ("forked", "fan", "pointed", "square"),
    "bill shape": ("cone", "dagger", "curved", "spatulate"),
    "bill color": ("black", "yellow", "red", "blue"),
    "leg color": ("black", "yellow", "red", "blue"),
}
"""The ten attributes in the order of the vector's columns; names from the paper's 28 groups for birds."""

NAMES = tuple(ATTRIBUTES)
NUM_VALUES = np.array([len(values) for values in ATTRIBUTES.values()])
NUM_POSES = 6

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

# Materials: what a sample of the picture can show.
(NOTHING, OUTLINE, CROWN, FACE, BREAST, BREAST_MARK, BELLY, WING, WING_MARK, BACK, TAIL, BILL, LEG, EYE, GLINT) = range(
    15
)
NUM_MATERIALS = 15
OUTLINE_RGB = (30, 26, 28)

# Columns of the parameters of one picture, all uniform in [0, 1) (see `draw`).
POSE, FLIP, TURN, SCALE, STRETCH, PLACE_X, PLACE_Y, SCENE, SCENE_X, SCENE_Y, LIGHT, WARMTH, TINT, SHADE, TONE, GRAIN = (
    range(16)
)
NUM_PARAMETERS = 16

GAPS = ("washed-out", "filter", "quarter-turn")
DRAWING_VERSION = 3
"""Part of every fingerprint; raise it with any change that moves a pixel."""
SMALL_ATLAS = 256
ATLAS_REACH = 1.2  # the atlas reaches further than any bird, so that its rim is empty


# --- signed distances in the bird's own coordinates: x forward, y down, negative inside ---


def _ellipse(x, y, centre, radii, angle=0.0):
    cos, sin = np.cos(angle), np.sin(angle)
    u = ((x - centre[0]) * cos + (y - centre[1]) * sin) / radii[0]
    v = (-(x - centre[0]) * sin + (y - centre[1]) * cos) / radii[1]
    # Not the exact distance to an ellipse, but its zero is exact and its slope near the rim is close to 1.
    norm = np.sqrt(u * u + v * v) + 1e-6
    return (norm - 1.0) * norm / (np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2) + 1e-6)


def _segment(x, y, start, end, radius_start, radius_end=None):
    radius_end = radius_start if radius_end is None else radius_end
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    return np.hypot(x - start[0] - along * dx, y - start[1] - along * dy) - (
        radius_start + along * (radius_end - radius_start)
    )


def _polygon(x, y, corners):
    """Distance to a simple polygon: nearest edge, sign by crossing number."""
    distance = np.full(x.shape, np.inf, np.float32)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        distance = np.minimum(distance, _segment(x, y, (ax, ay), (bx, by), 0.0))
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return np.where(inside, -distance, distance)


def _smooth_union(a, b, blend):
    h = np.clip(0.5 + 0.5 * (b - a) / blend, 0.0, 1.0)
    return b + (a - b) * h - blend * h * (1.0 - h)


def _frame(x, y, origin, angle):
    """Coordinates of a part: its own x axis points along `angle` (y down) from `origin`."""
    cos, sin = np.cos(angle), np.sin(angle)
    return (x - origin[0]) * cos + (y - origin[1]) * sin, -(x - origin[0]) * sin + (y - origin[1]) * cos


def _tails(x, y, origin, angle):
    """Distances to the four tails, in the order of the attribute's values; the tail grows along `angle`."""
    u, v = _frame(x, y, origin, angle)
    forked = np.minimum(
        _polygon(u, v, [(-0.1, -0.08), (0.16, -0.12), (0.62, -0.36), (0.22, 0.02), (-0.1, 0.08)]),
        _polygon(u, v, [(-0.1, -0.08), (0.22, -0.02), (0.62, 0.36), (0.16, 0.12), (-0.1, 0.08)]),
    )
    wedge = _polygon(u, v, [(-0.12, -0.05), (0.40, -0.44), (0.62, 0.0), (0.40, 0.44), (-0.12, 0.05)])
    fan = np.maximum(wedge, np.hypot(u + 0.06, v) - 0.52)
    pointed = _polygon(u, v, [(-0.1, -0.10), (0.10, -0.09), (0.66, 0.0), (0.10, 0.09), (-0.1, 0.10)])
    square = _polygon(u, v, [(-0.1, -0.13), (0.30, -0.16), (0.30, 0.16), (-0.1, 0.13)])
    return forked, fan, pointed, square


def _bills(x, y, origin, angle):
    """Distances to the four bills, in the order of the attribute's values; the bill grows along `angle`."""
    u, v = _frame(x, y, origin, angle)
    cone = _polygon(u, v, [(-0.08, -0.17), (0.20, 0.03), (-0.08, 0.16)])
    dagger = _polygon(u, v, [(-0.06, -0.06), (0.46, 0.0), (-0.06, 0.06)])
    arc = [(-0.05, -0.03), (0.07, -0.04), (0.16, 0.0), (0.22, 0.08), (0.245, 0.18), (0.235, 0.30)]
    curved = functools.reduce(
        np.minimum,
        (_segment(u, v, arc[i], arc[i + 1], 0.060 - 0.008 * i, 0.052 - 0.008 * i) for i in range(5)),
    )
    spatulate = np.minimum(
        _segment(u, v, (-0.05, 0.0), (0.20, 0.01), 0.042), _ellipse(u, v, (0.28, 0.015), (0.135, 0.125))
    )
    return cone, dagger, curved, spatulate


@functools.cache
def _atlas(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All poses as label maps.

    Returns:
        labels (poses * size * size,) uint16; group (labels,) the attribute column that decides a label, or -1;
        materials (labels, 4), the material shown for each value of that attribute.
    """
    axis = ((np.arange(size) + 0.5) / size * 2.0 - 1.0).astype(np.float32) * np.float32(ATLAS_REACH)
    x, y = np.meshgrid(axis, axis)
    rows = np.concatenate([_draw_pose(x, y, pose).reshape(-1, 5) for pose in range(NUM_POSES)])
    # Pack the five small numbers into one integer: unique over integers is fast, over rows it is not.
    packed = (
        ((rows[:, 0].astype(np.int64) + 1) << 16)
        | (rows[:, 1] << 12)
        | (rows[:, 2] << 8)
        | (rows[:, 3] << 4)
        | rows[:, 4]
    )
    unique, labels = np.unique(packed, return_inverse=True)
    materials = np.stack([(unique >> shift) & 15 for shift in (12, 8, 4, 0)], 1)
    return labels.astype(np.uint16), (unique >> 16) - 1, materials


def _draw_pose(x: np.ndarray, y: np.ndarray, pose: int) -> np.ndarray:
    """One pose as rows (deciding attribute column or -1, material for value 0, 1, 2, 3)."""
    tilt = (-0.30, -0.62, -0.12, -0.45, -0.75, -0.22)[pose]
    reach = (0.46, 0.44, 0.50, 0.52, 0.42, 0.44)[pose]
    droop = (-0.05, 0.00, 0.02, 0.16, 0.06, -0.16)[pose]
    stride = (0.00, 0.05, 0.12, -0.04, 0.02, 0.08)[pose]
    body_centre = (-0.05, 0.06)
    along = np.array([np.cos(tilt), np.sin(tilt)])
    head = np.array(body_centre) + reach * np.array([np.cos(tilt - 0.25 + droop), np.sin(tilt - 0.25 + droop)])
    rump = np.array(body_centre) - 0.36 * along
    shoulder = np.array(body_centre) + 0.02 * along + 0.05 * np.array([np.sin(tilt), -np.cos(tilt)])

    body = _ellipse(x, y, body_centre, (0.44, 0.30), tilt)
    skull = np.hypot(x - head[0], y - head[1]) - 0.205
    bird = _smooth_union(body, skull, 0.16)
    wing = _smooth_union(
        _ellipse(x, y, tuple(shoulder - 0.20 * along), (0.28, 0.155), tilt - 0.06),
        _segment(x, y, tuple(shoulder - 0.2 * along), tuple(rump - 0.20 * along + np.array([0.0, -0.02])), 0.12, 0.02),
        0.08,
    )
    foot_y = 0.76
    hip = np.array(body_centre) + 0.02 * along + np.array([0.0, 0.20])
    legs = np.full_like(x, np.inf)
    for side in (-0.09 - stride, 0.09 + stride):
        foot = (hip[0] + side * 1.15, foot_y)
        legs = np.minimum(legs, _segment(x, y, (hip[0] + side * 0.7, hip[1]), foot, 0.034))
        legs = np.minimum(
            legs, _segment(x, y, (foot[0] - 0.04, foot_y), (foot[0] + 0.12, foot_y + 0.012), 0.036, 0.022)
        )

    u, v = _frame(x, y, body_centre, tilt)  # along and across the body
    head_u, head_v = _frame(x, y, tuple(head), 0.35 * (tilt + 0.3) + 0.12)
    rows = np.zeros((*x.shape, 5), np.int64)
    rows[..., 0] = -1

    def paint(where, material):
        rows[where, 0] = -1
        rows[where, 1:] = material

    def paint_shape(column, distances, material, free):
        for value, distance in enumerate(distances):
            layer = np.where(distance < 0, material, np.where(distance < 0.032, OUTLINE, NOTHING))
            change = free & (layer != NOTHING)
            rows[change, 1 + value] = layer[change]
            rows[change, 0] = column

    everywhere = np.ones(x.shape, bool)
    paint_shape(NAMES.index("tail shape"), _tails(x, y, tuple(rump), tilt + np.pi + 0.10), TAIL, everywhere)
    paint(legs < 0.022, OUTLINE)
    paint(legs < 0, LEG)
    # Bills stop at the head, so a bill's region never decides what the head shows.
    bill_origin = tuple(head + 0.185 * np.array([np.cos(0.06 + 0.3 * droop), np.sin(0.06 + 0.3 * droop)]))
    paint_shape(NAMES.index("bill shape"), _bills(x, y, bill_origin, 0.08 + 0.4 * droop), BILL, bird > 0)
    rim = (bird > 0) & (bird < 0.03)
    paint(rim & (rows[..., 1:] != BILL).all(-1), OUTLINE)
    paint(bird < 0, BELLY)

    on_breast = (bird < 0) & (u > 0.03 - 0.25 * (v - 0.1)) & (skull > 0.0)
    paint(on_breast, BREAST)
    marks = _pattern_marks(u - 0.21, v - 0.07, ("solid", "spotted", "sides", "band"), 0.24)
    for value, mark in enumerate(marks):
        rows[on_breast, 1 + value] = np.where(mark, BREAST_MARK, BREAST)[on_breast]
    rows[on_breast, 0] = NAMES.index("breast pattern")
    paint((bird < 0) & (v < -0.14) & (u < 0.16) & (skull > 0.02), BACK)

    paint((wing > 0) & (wing < 0.022) & (bird < 0.03), OUTLINE)
    on_wing = wing < 0
    w, z = _frame(x, y, tuple(shoulder - 0.2 * along), tilt)
    marks = _pattern_marks(w, z, ("solid", "spotted", "barred", "edged"), 0.20, edge=wing)
    for value, mark in enumerate(marks):
        rows[on_wing, 1 + value] = np.where(mark, WING_MARK, WING)[on_wing]
    rows[on_wing, 0] = NAMES.index("wing pattern")

    paint((skull < 0.0) & (bird < 0), FACE)
    paint((skull < 0.0) & (head_v < -0.035) & (bird < 0), CROWN)
    eye = np.hypot(head_u - 0.07, head_v - 0.005)
    paint(eye < 0.050, EYE)
    paint(np.hypot(head_u - 0.085, head_v + 0.012) < 0.018, GLINT)
    return rows


def _pattern_marks(u, v, patterns, period, edge=None):
    """Where each pattern is marked, for coordinates along (u) and across (v) the body."""
    row = np.round(v / period)
    shifted = u - 0.5 * period * (row % 2)
    spot = np.hypot(shifted - np.round(shifted / period) * period, v - row * period) < 0.36 * period
    marks = {
        "solid": np.zeros(u.shape, bool),
        "spotted": spot,
        "sides": np.abs(v) > 0.36 * period,
        "barred": np.abs(u - np.round(u / period) * period) < 0.25 * period,
        "band": np.abs(u) < 0.40 * period,
    }
    if edge is not None:
        marks["edged"] = edge > -0.06
    return [marks[name] for name in patterns]


# --- pictures ---


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
    _, group, materials = _atlas(size)
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


def parts(attributes: np.ndarray, parameters: np.ndarray, cells: int, *, points: int = 32) -> np.ndarray:
    """Where each attribute is to be seen in clean pictures: its share of every cell of a square grid.

    Args:
        attributes, parameters: as for `draw`.
        cells: cells along an edge.
        points: samples along an edge of the picture, a multiple of `cells`.

    Returns:
        (pictures, 10, cells, cells) float32 in [0, 1].
    """
    shows = np.zeros((NUM_MATERIALS, len(NAMES)), np.float32)
    for material, names in _SHOWN_BY.items():
        shows[material, [NAMES.index(name) for name in names]] = 1.0
    num = len(attributes)
    parameters = parameters.astype(np.float32)
    index = _atlas_index(*_atlas_maps(parameters, 0.0), 0.0, 0.0, points, SMALL_ATLAS)
    labels = _atlas(SMALL_ATLAS)[0][index]
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
    labels, _, _ = _atlas(atlas_size)
    palettes = _palettes(attributes, parameters, atlas_size)
    first_label = (np.arange(num, dtype=np.int32) * palettes.shape[1])[:, None, None]
    palettes = palettes.reshape(-1)

    p = parameters
    axis = ((np.arange(size) + 0.5) / size * 2.0 - 1.0).astype(np.float32)
    turn = np.float32(0.5 * np.pi * shift if gap == "quarter-turn" else 0.0)
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
    if shift == 0 or gap == "quarter-turn":  # the turn was applied to the geometry
        return image
    gray = np.array([0.30, 0.59, 0.11], np.float32)
    if gap == "washed-out":  # saturation and contrast fall towards a pale paper
        saturation, contrast = 1.0 - 0.92 * shift, 1.0 - 0.60 * shift
        matrix = contrast * (saturation * np.eye(3) + (1 - saturation) * np.outer(gray, np.ones(3)))
        return image @ matrix.astype(np.float32) + np.float32((1 - contrast) * 190)
    if gap == "filter":  # the channels are turned about the gray axis, as by a wrong film
        angle = shift * 2 * np.pi / 3
        cos, sin, third = np.cos(angle), np.sin(angle), 1 / 3
        a, b = cos + third * (1 - cos), third * (1 - cos)
        root = np.sqrt(third) * sin
        matrix = np.array([[a, b - root, b + root], [b + root, a, b - root], [b - root, b + root, a]])
        return image @ matrix.T.astype(np.float32)
    raise ValueError(f"data.gap: {gap!r} is not known; choose one of {', '.join(GAPS)}")
