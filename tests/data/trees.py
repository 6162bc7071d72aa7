"""Small data sets on disk, in the formats of their owners."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from saga_ray.config import DataConfig


def picture(path: Path, number: int, size: tuple[int, int] = (40, 30)) -> Path:
    """Write an image whose pixels are a function of `number`; the file's ending decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(number).integers(0, 256, size=(3, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)
    return path


def class_folders(root: Path, num_images: dict[str, int], suffix: str = ".jpg") -> Path:
    """`root/<class>/<number>.jpg`."""
    number = 0
    for label, count in num_images.items():
        for i in range(count):
            picture(root / label / f"{i}{suffix}", number)
            number += 1
    return root


def small_config(root: Path, **changes: object) -> DataConfig:
    """A data config for trees of a few classes."""
    values = {"root": str(root), "image_size": 16, "classes_per_batch": 2, "images_per_class": 2, "num_shards": 1}
    return DataConfig(**(values | {"pairs_per_batch": 2} | changes))


def cub_tree(root: Path, classes: dict[int, str], num_images: int = 3) -> Path:
    """CUB-200-2011's files, `images.txt` in another order than the labels."""
    folder = root / "CUB_200_2011"
    lines, labels, image = [], [], 0
    for number, name in classes.items():
        for i in range(num_images):
            image += 1
            file = f"{number:03d}.{name}/{name}_{i:04d}_{image}.jpg"
            picture(folder / "images" / file, image)
            lines.append(f"{image} {file}")
            labels.append(f"{image} {number}")
    (folder / "images.txt").write_text("\n".join(reversed(lines)) + "\n")
    (folder / "image_class_labels.txt").write_text("\n".join(labels) + "\n")
    (folder / "classes.txt").write_text("".join(f"{number} {number:03d}.{name}\n" for number, name in classes.items()))
    (folder / "bounding_boxes.txt").write_text("".join(f"{i + 1} 60.0 27.0 325.0 304.0\n" for i in range(image)))
    (root / "attributes.txt").write_text("1 has_bill_shape::curved_(up_or_down)\n")
    return folder


def aircraft_tree(root: Path, variants: list[str], num_images: int = 4) -> Path:
    """FGVC-Aircraft's files, with a black banner below white pictures."""
    data = root / "fgvc-aircraft-2013b" / "data"
    lists: dict[str, list[str]] = {"train": [], "val": [], "trainval": [], "test": []}
    number = 34309
    for variant in variants:
        for i in range(num_images):
            image_id = f"{number:07d}"
            number += 1
            pixels = np.full((100, 120, 3), 255, dtype=np.uint8)
            pixels[-20:] = 0
            path = data / "images" / f"{image_id}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=98)
            part = ("train", "val", "test")[i % 3]
            for name in (part, "trainval") if part != "test" else (part,):
                lists[name].append(f"{image_id} {variant}")
    for name, lines in lists.items():
        (data / f"images_variant_{name}.txt").write_text("\n".join(lines) + "\n")
    (data / "variants.txt").write_text("\n".join(sorted(variants)) + "\n")
    return data


def _struct(rows: list[dict[str, object]]) -> np.ndarray:
    out = np.zeros((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for i, row in enumerate(rows):
        for name, value in row.items():
            out[0, i][name] = value
    return out


def _cell(names: list[str]) -> np.ndarray:
    out = np.empty((1, len(names)), dtype=object)
    out[0, :] = names
    return out


def cars_tree(root: Path, layout: str, names: list[str], num_images: int = 4) -> Path:
    """Cars-196 in layout `one list`, `devkit` or `kaggle`; classes are numbered from 1 in the order of `names`."""
    root.mkdir(parents=True, exist_ok=True)
    images = [(number, i) for number in range(1, len(names) + 1) for i in range(num_images)]
    box = {"bbox_x1": 1, "bbox_y1": 2, "bbox_x2": 30, "bbox_y2": 25}
    if layout == "one list":
        rows = []
        for place, (number, i) in enumerate(images, 1):
            path = f"car_ims/{place:06d}.jpg"
            picture(root / path, place)
            rows.append({"relative_im_path": path, **box, "class": number, "test": i % 2})
        savemat(
            root / "cars_annos.mat", {"annotations": _struct(rows), "class_names": _cell(names)}, do_compression=True
        )
    elif layout == "devkit":
        (root / "devkit").mkdir()
        savemat(root / "devkit" / "cars_meta.mat", {"class_names": _cell(names)}, do_compression=True)
        for part, file in ((0, "devkit/cars_train_annos.mat"), (1, "cars_test_annos_withlabels.mat")):
            folder, rows = ("cars_train", "cars_test")[part], []
            for place, (number, _) in enumerate([image for image in images if image[1] % 2 == part], 1):
                picture(root / folder / f"{place:05d}.jpg", 1000 * part + place)
                rows.append({**box, "class": number, "fname": f"{place:05d}.jpg"})
            savemat(root / file, {"annotations": _struct(rows)}, do_compression=True)
    else:
        (root / "names.csv").write_text("".join(f'"{name}"\n' if "," in name else f"{name}\n" for name in names))
        for place, (number, i) in enumerate(images, 1):
            folder = names[number - 1].replace("/", "-")
            picture(root / "car_data" / "car_data" / ("train", "test")[i % 2] / folder / f"{place:05d}.jpg", place)
    return root


def inat_tree(root: Path, species: list[str], num_images: int = 3, flat: bool = False) -> Path:
    """iNaturalist 2021's `train_mini`; `flat` puts the images elsewhere, so that only the JSON file knows the species."""
    categories, annotations, images = [], [], []
    for number, name in enumerate(species):
        parts = name.split("_")
        categories.append({"id": number, "class": parts[3], "image_dir_name": name, "name": " ".join(parts[-2:])})
        for i in range(num_images):
            image = len(images)
            file = f"files/{image:04d}.jpg" if flat else f"train_mini/{name}/{image:04d}-{i}.jpg"
            picture(root / file, image)
            images.append({"id": image, "file_name": file, "width": 40, "height": 30})
            annotations.append({"id": image, "image_id": image, "category_id": number})
    content = {"info": {}, "licenses": [], "images": images[::-1], "annotations": annotations, "categories": categories}
    (root / "train_mini.json").write_text(json.dumps(content))
    return root
