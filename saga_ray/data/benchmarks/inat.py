"""iNat-Aves: the birds of iNaturalist 2021 `train_mini`, 1,486 species of 50 images, the first 743 train, the last 743 are queried.

Species are sorted by the name of their folder, `NNNNN_Animalia_Chordata_Aves_Order_Family_Genus_species`. Where the
images do not lie in such folders, the owner's COCO file (`train_mini.json`) says which are birds. The full `train` set has the
same species and 414,847 images of them; it is taken where it is named itself or `train_mini` is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saga_ray.config import DataConfig
from saga_ray.data.benchmarks.benchmark import benchmark_dataset
from saga_ray.data.benchmarks.coco import elements
from saga_ray.data.benchmarks.layouts import BIRD_SPECIES, INAT_FOLDERS, INAT_LISTINGS, located
from saga_ray.data.benchmarks.manifests import manifest
from saga_ray.data.files.tree import Found, image_files, list_folder
from saga_ray.types import Dataset

FULL_IMAGES = 414_847
"""Birds in the full training set, as the owner's table says."""

Images = Mapping[str, Sequence[tuple[str, str]]]
"""Species to (image id, path under root)."""


def inat_dataset(data: DataConfig) -> Dataset:
    """Read `train_mini` or `train`, or the folder that holds it; image ids are `species folder/file`, wherever the files lie.

    Raises:
        ValueError: for a tree without bird species, a damaged JSON file, or other counts (`data.verify_counts`).
    """
    given, found = located(data.root, "inat-aves", _find)
    if found is None:
        raise ValueError(
            f"data.root: no species of birds found in {given} (folders such as train_mini/03111_Animalia_Chordata_Aves_.../, or "
            f"{INAT_LISTINGS[0]}, were looked for); name the folder of train_mini with --data-root DIR"
        )
    root, images = found
    split, order = manifest("inat-aves"), sorted(images)
    class_ids = {name: name[:5] for name in order}
    if sum(map(len, images.values())) > split.num_images:
        split = split.with_total(FULL_IMAGES)
    return benchmark_dataset(Found("inat-aves", root, {name: images[name] for name in order}, class_ids), split, data)


def _find(root: Path) -> tuple[Path, Images] | None:
    for folder in INAT_FOLDERS:
        if (root / folder).is_dir() and (images := _by_folder(root / folder)):
            return root / folder, images
    for name in INAT_LISTINGS:
        if (root / name).exists() and (images := _by_json(root / name)):
            return root, images
    return None


def _by_folder(root: Path) -> Images:
    species = [entry.name for entry in list_folder(root) if BIRD_SPECIES.fullmatch(entry.name) and entry.is_dir()]
    return {name: [(f"{name}/{file}",) * 2 for file in image_files(root / name)] for name in species}


def _by_json(path: Path) -> Images:
    """Read the file three times, one element at a time: its lists may stand in any order, and the full one has a gigabyte."""
    try:
        species = {c["id"]: _checked(c["image_dir_name"]) for c in elements(path, "categories") if c["class"] == "Aves"}
        label_of = {
            a["image_id"]: species[a["category_id"]]
            for a in elements(path, "annotations")
            if a["category_id"] in species
        }
        out: dict[str, list[tuple[str, str]]] = {name: [] for name in species.values()}
        for image in elements(path, "images"):
            if image["id"] in label_of:
                out[label_of[image["id"]]].append(_image(label_of[image["id"]], image["file_name"]))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data.root: {path} cannot be read ({error}); the file is damaged") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"data.root: {path} is not iNaturalist's COCO file (no {error}); download it again") from None
    except ValueError as error:
        raise ValueError(f"data.root: {path} is not iNaturalist's COCO file ({error}); download it again") from None
    return {name: sorted(images) for name, images in out.items() if images}


def _checked(species: Any) -> str:
    if not isinstance(species, str) or not BIRD_SPECIES.fullmatch(species) or "/" in species:
        raise ValueError(f"image_dir_name {species!r} is no species of birds")
    return species


def _image(species: str, path: str) -> tuple[str, str]:
    return f"{species}/{path.rpartition('/')[2]}", path
