"""Small data sets on disk, in the formats of their owners, with the traps that are in the real ones."""

from __future__ import annotations

import io
import json
import math
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from saga_ray.config import DataConfig
from saga_ray.types import Dataset


def picture(path: Path, number: int, size: tuple[int, int] = (40, 30)) -> Path:
    """Write an image whose pixels are a function of `number`; the file's ending decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(number).integers(0, 256, size=(3, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)
    return path


def jpeg_with_damaged_exif() -> bytes:
    """A sound picture, to be turned, whose tag `Make` is marked as a fraction: Pillow stumbles when it turns it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker of cameras"
    out = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 30, 40)).save(out, "JPEG", exif=exif)
    content = bytearray(out.getvalue())
    start = content.index(b"Exif\0\0") + 6
    order = ">" if content[start : start + 2] == b"MM" else "<"
    tag = content.index(struct.pack(f"{order}HH", 0x010F, 2), start)
    content[tag + 2 : tag + 8] = struct.pack(f"{order}HI", 5, 1)
    return bytes(content)


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


def partial(root: Path, **changes: object) -> DataConfig:
    """The same for a tree that is not complete."""
    return small_config(root, verify_counts=False, **changes)


def splits(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """Split name to class names."""
    return {name: dataset.split(name).class_names for name in ("train", "validation", "test")}


def every_image_decodes(dataset: Dataset) -> None:
    """Decode all images, and check that tables fit together and no image is in two of them."""
    for name in ("train", "validation", "test"):
        table = dataset.split(name)
        assert len(table.labels_N) == len(table)
        assert set(table.labels_N.tolist()) == set(range(len(table.class_names)))
        assert table.source.load(range(len(table)), 8).shape == (len(table), 8, 8, 3)
    ids = dataset.train.image_ids + dataset.validation.image_ids + dataset.test.image_ids
    assert len(set(ids)) == len(ids)


def tar(archive: Path, *paths: Path, mode: str = "w:gz") -> Path:
    """Pack files and folders under their own names, as owners do."""
    with tarfile.open(archive, mode) as out:
        for path in paths:
            out.add(path, path.name)
    return archive


BIRDS = {
    1: "Black_footed_Albatross",
    2: "Laysan_Albatross",
    50: "Eared_Grebe",
    101: "White_Pelican",
    110: "Geococcyx",
    200: "Common_Yellowthroat",
}
ATTRIBUTES = (
    "has_bill_shape::curved_(up_or_down)",
    "has_bill_shape::hooked_seabird",
    "has_wing_color::black",
    "has_wing_color::white",
    "has_wing_color::buff",
    "has_size::medium_(9_-_16_in)",
)


def cub_tree(root: Path, classes: dict[int, str], num_images: int = 3) -> Path:
    """CUB-200-2011's files, `images.txt` in another order than the labels, a space behind the last class's name."""
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
    names = "\n".join(f"{number} {number:03d}.{name}" for number, name in classes.items())
    (folder / "classes.txt").write_text(f"{names} \n")
    (folder / "bounding_boxes.txt").write_text("".join(f"{i + 1} 60.0 27.0 325.0 304.0\n" for i in range(image)))
    (folder / "train_test_split.txt").write_text("".join(f"{i + 1} {i % 2}\n" for i in range(image)))
    (folder / "attributes").mkdir()
    certainties = "1 not visible\n2 guessing\n3 probably\n4 definitely\n"
    (folder / "attributes" / "certainties.txt").write_text(certainties)
    rng = np.random.default_rng(0)
    (folder / "attributes" / "image_attribute_labels.txt").write_text(
        "".join(
            f"{i + 1} {attribute + 1} {rng.integers(2)} {rng.integers(1, 5)} {rng.random() * 30:.3f}\n"
            for i in range(image)
            for attribute in range(len(ATTRIBUTES))
        )
    )
    (root / "attributes.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(ATTRIBUTES, 1)))
    return folder


AIRCRAFT = ("707-320", "F-16A/B", "CRJ-900", "Cessna 560", "Challenger 600", "Model B200")


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


CARS = [
    "AM General Hummer SUV 2000",
    "Acura RL Sedan 2012",
    "Audi R8 Coupe 2012",
    "Ram C/V Cargo Van Minivan 2012",
    "Volvo 240 Sedan 1993",
    "smart fortwo Convertible 2012",
]


def cars_tree(root: Path, layout: str, names: list[str], num_images: int = 4, classes: list[int] | None = None) -> Path:
    """Cars-196 in layout `one list`, `devkit`, `nested devkit` or `kaggle`.

    Classes are numbered from 1 in the order of `names`; only those of `classes` have images, by default all.
    """
    root.mkdir(parents=True, exist_ok=True)
    images = [(number, i) for number in classes or range(1, len(names) + 1) for i in range(num_images)]
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
    elif layout in ("devkit", "nested devkit"):
        (root / "devkit").mkdir()
        savemat(root / "devkit" / "cars_meta.mat", {"class_names": _cell(names)}, do_compression=True)
        for part, file in ((0, "devkit/cars_train_annos.mat"), (1, "cars_test_annos_withlabels.mat")):
            folder, rows = ("cars_train", "cars_test")[part], []
            inner = f"{folder}/{folder}" if layout.startswith("nested") else folder
            for place, (number, _) in enumerate([image for image in images if image[1] % 2 == part], 1):
                picture(root / inner / f"{place:05d}.jpg", 1000 * part + place)
                rows.append({**box, "class": number, "fname": f"{place:05d}.jpg"})
            savemat(root / file, {"annotations": _struct(rows)}, do_compression=True)
    else:
        (root / "names.csv").write_text("".join(f'"{name}"\n' if "," in name else f"{name}\n" for name in names))
        for place, (number, i) in enumerate(images, 1):
            folder = names[number - 1].replace("/", "-")
            picture(root / "car_data" / "car_data" / ("train", "test")[i % 2] / folder / f"{place:05d}.jpg", place)
    return root


AVES = [
    "03111_Animalia_Chordata_Aves_Accipitriformes_Accipitridae_Accipiter_badius",
    "03112_Animalia_Chordata_Aves_Accipitriformes_Accipitridae_Accipiter_cooperii",
    "03853_Animalia_Chordata_Aves_Order_Family_Genus_last-that-trains",
    "03854_Animalia_Chordata_Aves_Order_Family_Genus_first-that-is-queried",
    "04595_Animalia_Chordata_Aves_Trogoniformes_Trogonidae_Trogon_x",
    "04596_Animalia_Chordata_Aves_Trogoniformes_Trogonidae_Trogon_rufus",
]
OTHERS = [
    "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris",
    "05000_Animalia_Chordata_Mammalia_O_F_G_s",
]


def inat_tree(
    root: Path, species: list[str], num_images: int = 3, flat: bool = False, name: str = "train_mini"
) -> Path:
    """iNaturalist 2021's `train_mini`; `flat` puts the images elsewhere, so that only the JSON file knows the species."""
    categories, annotations, images = [], [], []
    for number, folder in enumerate(species):
        parts = folder.split("_")
        taxon = {"kingdom": parts[1], "phylum": parts[2], "class": parts[3], "supercategory": "Birds"}
        categories.append({"id": number, **taxon, "image_dir_name": folder, "name": " ".join(parts[-2:])})
        for i in range(num_images):
            image = len(images)
            file = f"files/{image:04d}-{i}.jpg" if flat else f"{name}/{folder}/{image:04d}-{i}.jpg"
            picture(root / file, image)
            place = {"latitude": math.nan if i else 51.5, "longitude": math.nan if i else -0.1}
            images.append({"id": image, "file_name": file, "width": 40, "height": 30, **place, "rights_holder": "é]}"})
            annotations.append({"id": image, "image_id": image, "category_id": number})
    lists = {"images": images[::-1], "categories": categories, "annotations": annotations, "licenses": []}
    (root / f"{name}.json").write_text(json.dumps({"info": {"year": 2021, "urls": ["a"]}, **lists}, ensure_ascii=False))
    return root
