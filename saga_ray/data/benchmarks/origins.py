"""Where the data sets are to be had, how large their files are, and what to do by hand: `saga-ray data help NAME`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OriginFile:
    """One archive or file of a data set.

    Example: `OriginFile("CUB_200_2011.tgz", url="https://...", num_bytes=1_150_585_339, md5="97ec...")`.
    """

    name: str
    url: str | None = None
    """Where it could last be downloaded; None where the owner's address is dead."""
    num_bytes: int | None = None
    md5: str | None = None
    what: str = ""
    needed: bool = True
    """False for files that training and evaluation do without."""


@dataclass(frozen=True)
class Origin:
    """What is known about getting a data set."""

    title: str
    page: str
    files: tuple[OriginFile, ...]
    checksums: str
    """Who says what the checksums are."""
    steps: tuple[str, ...]
    mirrors: tuple[str, ...] = ()
    terms: str = ""


_INAT = "https://ml-inat-competition-datasets.s3.amazonaws.com/2021"

ORIGINS: dict[str, Origin] = {
    # MD5 as many readers check it at this address (avalanche, cub2011 and others); size as in TensorFlow Datasets'
    # url_checksums/caltech_birds2011.txt, for the same file.
    "cub": Origin(
        "CUB-200-2011 (Wah et al., 2011): 11,788 images of 200 bird species",
        "https://data.caltech.edu/records/65de6-vp158",
        (
            OriginFile(
                "CUB_200_2011.tgz",
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                1_150_585_339,
                "97eceeb196236b17998738112f37df78",
                "images, labels, boxes and attributes",
            ),
        ),
        "as other readers of this data set record them",
        (
            "tar -xzf CUB_200_2011.tgz",
            "attributes.txt lies beside the folder CUB_200_2011 after unpacking; leave it there",
            "saga-ray data check CUB_200_2011",
        ),
        (
            "Copies sorted into train and test folders by train_test_split.txt have the classification split: all 200 classes stand "
            "in both. They are no CUB-200-2011 for retrieval; images.txt, image_class_labels.txt and classes.txt are needed.",
        ),
    ),
    # Sizes and SHA-256 in TensorFlow Datasets' url_checksums/cars196.txt, MD5 in torchvision's StanfordCars up to 0.21.
    # Dead since 2023: github.com/pytorch/vision/issues/7545. The Kaggle copies: the same thread and pull request 8620.
    "cars": Origin(
        "Cars-196 (Stanford Cars, Krause et al., 2013): 16,185 images of 196 models",
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html (not found since 2023)",
        (
            OriginFile("cars_train.tgz", None, 979_269_282, "065e5b463ae28d29e77c1b4b166cfe61", "8,144 images"),
            OriginFile("cars_test.tgz", None, 977_350_468, "4ce7ebf6a94d07f1952d94dd34c4d501", "8,041 images"),
            OriginFile("car_devkit.tgz", None, 330_960, "c3b158d763b6e2245038c8ad08e45376", "class names and training labels"),
            OriginFile("cars_test_annos_withlabels.mat", None, 185_758, "b0a2b23655a3edd16d84508592a98d10", "labels of cars_test"),
        ),
        "as torchvision recorded them while the address lived",
        (
            "The owner's address is dead; nothing can be downloaded by command.",
            "Get the Kaggle copy rickyyyyyyy/torchvision-stanford-cars by hand (it needs an account): it has all four parts in the owner's layout",
            "unpack it, so that there are stanford_cars/devkit/, cars_train/, cars_test/ and cars_test_annos_withlabels.mat",
            "saga-ray data check stanford_cars",
        ),
        (
            "kaggle.com/datasets/rickyyyyyyy/torchvision-stanford-cars: the owner's layout, complete.",
            "kaggle.com/datasets/jessicali9530/stanford-cars-dataset: the images one folder too deep (cars_train/cars_train/) and no "
            "devkit/: move the images up, and add devkit/ and cars_test_annos_withlabels.mat from elsewhere.",
            "kaggle.com/datasets/jutrera/stanford-car-dataset-by-classes-folder: names.csv and car_data/car_data/{train,test}/<class>/, "
            "a '/' in a class name is a '-' there; read as it is.",
        ),
    ),
    # Address as in torchvision's FGVCAircraft; MD5 as several readers check it (R's torchvision, pytorch-meta-dataset and
    # others), size as measured by others: 2,753,340,328 bytes.
    "aircraft": Origin(
        "FGVC-Aircraft 2013b (Maji et al., arXiv 1306.5151): 10,000 images of 100 variants",
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        (
            OriginFile(
                "fgvc-aircraft-2013b.tar.gz",
                "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                2_753_340_328,
                "d4acdd33327262359767eeaa97a4f732",
                "images and lists",
            ),
        ),
        "as other readers of this data set record them",
        ("tar -xzf fgvc-aircraft-2013b.tar.gz", "saga-ray data check fgvc-aircraft-2013b"),
        (
            "Kaggle copies that are sorted into train, val and test folders have the classification split; data/images/ and "
            "data/images_variant_*.txt are needed.",
        ),
    ),
    # Sizes and MD5: the owner's page, github.com/visipedia/inat_comp, 2021/README.md. torchvision's MD5 of 2021_train was
    # wrong until pull request 5844.
    "inat-aves": Origin(
        "iNaturalist 2021, the birds of train_mini: 74,300 images of 1,486 species",
        "https://github.com/visipedia/inat_comp/tree/master/2021",
        (
            OriginFile("train_mini.tar.gz", f"{_INAT}/train_mini.tar.gz", None, "db6ed8330e634445efc8fec83ae81442", "42 GB, images of all 10,000 species, 50 each"),
            OriginFile("train_mini.json.tar.gz", f"{_INAT}/train_mini.json.tar.gz", None, "395a35be3651d86dc3b0d365b8ea5f92", "45 MB, annotations", False),
            OriginFile("train.tar.gz", f"{_INAT}/train.tar.gz", None, "e0526d53c7f7b2e3167b2b43bb2690ed", "224 GB, the full training set, with counts of its own", False),
            OriginFile("train.json.tar.gz", f"{_INAT}/train.json.tar.gz", None, "38a7bb733f7a09214d44293460ec0021", "221 MB, its annotations", False),
        ),
        "published by the owner",
        (
            "tar -xzf train_mini.tar.gz --wildcards '*_Animalia_Chordata_Aves_*'   (the birds alone, about a seventh)",
            "saga-ray data check train_mini",
        ),
        ("torchvision unpacks into 2021_train_mini/ instead of train_mini/; both are read.",),
        "For non-commercial research and education; the images must not be handed on.",
    ),
}  # fmt: skip

OWN = {
    "demo": (
        "The demo world is drawn by saga-ray itself: nothing to download.",
        "saga-ray data show demo --picture birds.png",
    ),
    "folder": (
        "Your own pictures as DIR/<class>/<image>, or DIR/{train,validation,test}/<class>/<image> to fix the split.",
        "Or Parquet files, DIR/*.parquet or DIR/data/*.parquet, with a column of image bytes (binary, or a struct with a field "
        "'bytes' as on the Hugging Face hub) and a column of classes, by name or number.",
        "saga-ray data check DIR",
        "saga-ray train folder --data-root DIR",
    ),
}
"""Data sets without an owner to ask."""


def instructions(name: str) -> list[str]:
    """What to do for one data set, in lines."""
    if name in OWN:
        return list(OWN[name])
    origin = ORIGINS[name]
    lines = [origin.title, f"page: {origin.page}"]
    if origin.terms:
        lines.append(f"terms: {origin.terms} Read the owner's page.")
    lines += ["", f"files (checksums {origin.checksums}):"]
    for file in origin.files:
        size = f"{file.num_bytes:,} bytes" if file.num_bytes else "size: see right"
        optional = "" if file.needed else " (not needed)"
        lines += [f"  {file.name}{optional}: {size}, md5 {file.md5}; {file.what}"]
        if file.url:
            lines.append(f"    {file.url}")
    lines += ["", "steps:"]
    steps = list(origin.steps)
    if any(file.url for file in origin.files):
        steps.insert(
            0, f"saga-ray data download {name} --out DIR   (goes on where it stopped), or any browser; then, in DIR:"
        )
    lines += [f"  {number}. {step}" for number, step in enumerate(steps, 1)]
    if origin.mirrors:
        lines += ["", "other layouts that are about:", *(f"  - {mirror}" for mirror in origin.mirrors)]
    return lines
