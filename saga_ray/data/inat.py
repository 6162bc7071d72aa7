"""iNat-Aves: the birds of iNaturalist 2021 `train_mini`, 1,486 species of 50 images, the first 743 train, the last 743 are queried.

Species are sorted by the name of their folder, `NNNNN_Animalia_Chordata_Aves_Order_Family_Genus_species`. Where the
images do not lie in such folders, the owner's COCO file (`train_mini.json`) says which are birds.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from saga_ray.config import DataConfig
from saga_ray.data.tree import Found, Published, benchmark_dataset, image_files, list_folder, root_folder
from saga_ray.types import Dataset

PUBLISHED = Published(743, 37_150, 743, 37_150)
NUM_TRAIN_CLASSES = 743
_AVES = re.compile(r"\d{5}_Animalia_Chordata_Aves_.+")
_JSON = "train_mini.json"


def inat_dataset(data: DataConfig) -> Dataset:
    """Read `train_mini` or the folder that holds it (the full `train` set has other counts and is partial); image ids are paths from the folder given.

    Raises:
        ValueError: for a tree without bird species, a damaged JSON file, or other counts (`data.verify_counts`).
    """
    given = root_folder(data.root)
    images: dict[str, list[tuple[str, str]]] = {}
    for prefix in ("", "train_mini/", "2021_train_mini/", "train/"):
        images = _by_folder(given, prefix) if (given / prefix).is_dir() else {}
        if images:
            break
    if not images and (given / _JSON).exists():
        images = _by_json(given)
    if not images:
        raise ValueError(
            f"data.root: no species of birds found in {given} (folders such as train_mini/03111_Animalia_Chordata_Aves_.../, or "
            f"{_JSON}, were looked for); name the folder of train_mini with --data-root DIR"
        )
    order = sorted(images)
    found = Found("inat-aves", given, {name: images[name] for name in order}, frozenset(order[:NUM_TRAIN_CLASSES]))
    return benchmark_dataset(found, PUBLISHED, data)


def _by_folder(given: Path, prefix: str) -> dict[str, list[tuple[str, str]]]:
    species = [e.name for e in list_folder(given / prefix) if _AVES.fullmatch(e.name) and e.is_dir()]
    return {name: [(f"{prefix}{name}/{file}",) * 2 for file in image_files(given / prefix / name)] for name in species}


def _by_json(given: Path) -> dict[str, list[tuple[str, str]]]:
    path = given / _JSON
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        species = {c["id"]: c["image_dir_name"] for c in content["categories"] if c["class"] == "Aves"}
        label_of = {a["image_id"]: a["category_id"] for a in content["annotations"] if a["category_id"] in species}
        out: dict[str, list[tuple[str, str]]] = {name: [] for name in species.values()}
        for image in content["images"]:
            if image["id"] in label_of:
                out[species[label_of[image["id"]]]].append((image["file_name"],) * 2)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"data.root: {path} cannot be read ({error}); the file is damaged") from None
    except (KeyError, TypeError) as error:
        raise ValueError(f"data.root: {path} is not iNaturalist's COCO file (no {error}); download it again") from None
    return out
