"""Backgrounds and grain: drawn once, then cut out at random places."""

import functools

import numpy as np

NAMES = ("water", "forest", "meadow", "sand", "snow")
NUM_SCENES = 6  # drawn per habitat
SCENE_SIZE = 320
# The scene reaches further than the picture, so that it can be cut out anywhere and turned.
SCENE_REACH = 1.9


def _value_noise(rng: np.random.Generator, size: int, cells_x: int, cells_y: int) -> np.ndarray:
    """Smooth noise in [0, 1]: random values on a grid, blended with a cubic."""
    grid = rng.random((cells_y + 2, cells_x + 2)).astype(np.float32)

    def blend(cells):
        position = np.linspace(0, cells, size, endpoint=False, dtype=np.float32)
        cell = position.astype(int)
        part = position - cell
        return cell, part * part * (3 - 2 * part)

    (iy, fy), (ix, fx) = blend(cells_y), blend(cells_x)
    fy = fy[:, None]
    top = grid[iy][:, ix] * (1 - fx) + grid[iy][:, ix + 1] * fx
    bottom = grid[iy + 1][:, ix] * (1 - fx) + grid[iy + 1][:, ix + 1] * fx
    return top * (1 - fy) + bottom * fy


def _mix(a, b, weight):
    return np.asarray(a, np.float32) * (1 - weight[..., None]) + np.asarray(b, np.float32) * weight[..., None]


def _scene(habitat: int, variant: int) -> np.ndarray:
    """(SCENE_SIZE, SCENE_SIZE, 3) float picture of one place."""
    rng = np.random.default_rng([20260, habitat, variant])
    size = SCENE_SIZE
    axis = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32) * SCENE_REACH
    y = np.broadcast_to(axis[:, None], (size, size))
    horizon = -0.25 + 0.5 * (rng.random() - 0.5) + 0.10 * (_value_noise(rng, size, 6, 1) - 0.5)
    below = np.clip((y - horizon) * 18 + 0.5, 0, 1)
    depth = np.clip((y - horizon) / 1.6, 0, 1)
    soft = _value_noise(rng, size, 7, 7)
    fine = _value_noise(rng, size, 34, 34)
    sky = _mix((150, 190, 224), (214, 226, 232), np.clip(0.6 * (y + 1.4) / 1.6 + 0.4 * soft, 0, 1))
    name = NAMES[habitat]
    if name == "water":
        waves = np.sin((y - horizon) * 30 / (0.5 + depth) + 3.0 * _value_noise(rng, size, 9, 22))
        ground = _mix((96, 158, 182), (44, 104, 142), depth) + 11 * waves[..., None]
    elif name == "forest":
        trunk = (_value_noise(rng, size, 16, 1) > 0.66).astype(np.float32)
        sky = _mix(_mix((58, 92, 58), (112, 142, 84), soft), (74, 58, 44), 0.75 * trunk)
        ground = _mix((86, 78, 50), (54, 62, 36), soft) + 22 * (fine[..., None] - 0.5)
    elif name == "meadow":
        blades = _value_noise(rng, size, 90, 12)
        ground = _mix((138, 176, 84), (88, 140, 58), depth) + 30 * (blades[..., None] - 0.5)
        flowers = (_value_noise(rng, size, 46, 46) > 0.93) & (below > 0.9)
        ground[flowers] = rng.choice(np.array([[240, 226, 120], [236, 236, 240], [214, 130, 170]], np.float32))
    elif name == "sand":
        ripples = np.sin((y - horizon) * 22 + 5.0 * _value_noise(rng, size, 5, 5))
        ground = _mix((222, 202, 158), (196, 168, 118), depth) + 6 * ripples[..., None]
    else:
        ground = _mix((232, 238, 244), (196, 210, 226), np.clip(0.5 * depth + 0.6 * soft - 0.1, 0, 1))
        firs = np.clip(1.5 - np.abs(y - horizon + 0.12) * 9 - 2 * _value_noise(rng, size, 26, 2), 0, 1)
        sky = _mix((176, 190, 206), (206, 216, 226), soft)
        sky = sky * (1 - 0.6 * firs[..., None]) + np.array([52, 72, 74], np.float32) * 0.6 * firs[..., None]
    scene = sky * (1 - below[..., None]) + ground * below[..., None]
    return scene + 8 * (fine[..., None] - 0.5)


@functools.lru_cache(maxsize=1)
def _bank() -> np.ndarray:
    """(habitats * scenes * SCENE_SIZE * SCENE_SIZE,) packed RGBA with alpha 0."""
    scenes = np.stack([_scene(habitat, i) for habitat in range(len(NAMES)) for i in range(NUM_SCENES)])
    rgba = np.zeros((*scenes.shape[:3], 4), np.uint8)
    rgba[..., :3] = np.clip(scenes, 0, 255)
    return rgba.view(np.uint32).reshape(-1)


def scenes(habitat, scene, place_x, place_y, size: int, turn: float) -> np.ndarray:
    """Cut one background per picture out of the drawn scenes.

    Args:
        habitat: (pictures,) index into `NAMES`.
        scene, place_x, place_y: (pictures,) uniform numbers in [0, 1).
        size: edge of the picture in pixels.
        turn: turn of the whole picture in radians.

    Returns:
        (pictures, size, size, 3) float32 in [0, 255].
    """
    which = habitat * NUM_SCENES + np.minimum((scene * NUM_SCENES).astype(np.int64), NUM_SCENES - 1)
    axis = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    to_cell = np.float32(SCENE_SIZE / 2 / SCENE_REACH)
    offset_x = ((2 * place_x - 1) * 0.45)[:, None, None]
    offset_y = ((2 * place_y - 1) * 0.25)[:, None, None]
    x = cos * axis[None, :] + sin * axis[:, None]
    y = -sin * axis[None, :] + cos * axis[:, None]
    column = ((x + offset_x) * to_cell + np.float32(SCENE_SIZE / 2)).astype(np.int64)
    row = ((y + offset_y) * to_cell + np.float32(SCENE_SIZE / 2)).astype(np.int64)
    flat = (which[:, None, None] * SCENE_SIZE + np.clip(row, 0, SCENE_SIZE - 1)) * SCENE_SIZE
    flat += np.clip(column, 0, SCENE_SIZE - 1)
    return _bank()[flat][..., None].view(np.uint8)[..., :3].astype(np.float32)


@functools.cache
def _grain_bank(size: int) -> np.ndarray:
    """(2 * size, 2 * size, 3) standard normal noise."""
    return np.random.default_rng([20261, size]).standard_normal((2 * size, 2 * size, 3)).astype(np.float32)


def grain(place: np.ndarray, size: int) -> np.ndarray:
    """(pictures, size, size, 3) standard normal grain, cut at a place given by one uniform number per picture."""
    bank = _grain_bank(size)
    cell = (place.astype(np.float64) * size * size).astype(np.int64)
    return np.stack([bank[c // size : c // size + size, c % size : c % size + size] for c in cell])
