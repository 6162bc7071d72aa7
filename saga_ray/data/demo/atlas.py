"""Where a bird shows what: signed distances, once per pose, as a map of labels.

A label says which material a pixel shows for every value of the one shape or pattern attribute that decides it (a pixel
of the tail region may be tail, outline or nothing, depending on the tail's shape). Coordinates are the bird's own: x
forward, y down; distances are negative inside.
"""

import functools

import numpy as np

from saga_ray.data.demo.attributes import NAMES

NUM_POSES = 6
# Materials: what a sample of the picture can show.
(NOTHING, OUTLINE, CROWN, FACE, BREAST, BREAST_MARK, BELLY, WING, WING_MARK, BACK, TAIL, BILL, LEG, EYE, GLINT) = range(
    15
)
NUM_MATERIALS = 15
ATLAS_REACH = 1.2  # the atlas reaches further than any bird, so that its rim is empty


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
def label_maps(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
