"""Interprets the names of folders: splits, masks, and possible classes. No file is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from crlf.data.files.decode import PICTURES

SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}  # words in the path of a shard that name its split, as in `datasets`
UNLABELLED = "unlabelled"
WORDS = {
    **SPLITS,
    UNLABELLED: ("unlabelled", "unlabeled", "unlabel", "unsupervised", "unsup", "extra"),
}  # the same for folders
WORD_OF = {word: role for role, words in WORDS.items() for word in words}
FILLERS = ("", "set", "data", "dataset", "images", "image", "imgs", "img", "split", "labelled", "labeled")
BARE, WITH_LABELS = ("unlab", "unsup"), ("labelled", "labeled")
IMAGES = ("images", "image", "imgs", "img", "jpegimages", "rgb", "pictures", "photos")
MASKS = (
    *("mask", "masks", "label", "labels", "annotation", "annotations", "seg", "segmentation", "segmentations"),
    *("gt", "groundtruth", "ground_truth", "trimaps", "segmentationclass", "segmentationobject"),
)
FEW = 0.1  # share of the images that may lie outside the class folders

MONTH = (
    r"(jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|"
    r"oct(ober)?|nov(ember)?|dec(ember)?)"
)
YEAR, NUMBER, SEP = r"(19|20)\d\d", r"\d{1,2}", r"[-_. ]?"
DATES = (
    rf"{YEAR}({SEP}(0[1-9]|1[0-2]|[1-9])({SEP}[0-3]?\d)?)?",  # 2019, 2019-07, 20190714
    rf"{YEAR}[-_. ]{NUMBER}[-_. ]{NUMBER}\b.*",  # 2019-07-14 Rome
    rf"{YEAR}[-_ ]\D.*",  # 2019 Rome, 2019_summer
    rf"{NUMBER}[-_.]({NUMBER}[-_.])?{YEAR}",  # 14.07.2019, 07-2019
    rf"({NUMBER}{SEP})?{MONTH}({SEP}({YEAR}|\d\d))?",  # July, 07-July, jul 2019
    rf"{YEAR}{SEP}{MONTH}",  # 2019-July
    rf"{NUMBER}[-_.]{NUMBER}[-_.]\d\d",  # 14.07.19
    rf"(spring|summer|autumn|fall|winter){SEP}{YEAR}",  # Summer 2019
    rf"(photos|pictures|images|videos) (from|of) {YEAR}",  # Photos from 2019, as Google Takeout has them
)
CAMERA = re.compile(r"[1-9]\d\d[0-9A-Z_]{5}")  # 100CANON, 101_PANA: folder names of cameras, by the DCF standard
DATE = re.compile("|".join(f"({date})" for date in DATES), re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """The meaning of the folders of each file."""

    roles: list[str]
    """"train", "test", "unlabelled", or "" for a file that is not used."""
    folders: list[str]
    """The folder that may be its class; "" if it is in no such folder."""
    pictures: list[bool]
    """Whether it has the suffix of an image file."""
    splits: bool = False
    """Whether there are folders for splits."""
    notes: tuple[str, ...] = ()
    """Notes on the splits, and on folders that are not used."""

    def of(self, rows: Sequence[int]) -> Layout:
        """The layout of some of the files."""
        roles, folders = [self.roles[i] for i in rows], [self.folders[i] for i in rows]
        return replace(self, roles=roles, folders=folders, pictures=[self.pictures[i] for i in rows])

    def count(self, role: str) -> int:
        return self.roles.count(role)


def looks_like_a_date(name: str) -> bool:
    return DATE.fullmatch(name.strip()) is not None


def looks_like_a_cameras(name: str) -> bool:
    return CAMERA.fullmatch(name) is not None


def layout(names: Sequence[str]) -> Layout:
    """Interpret the folders of files with these relative names.

    Folders of which each is `train` or another split make the splits, at any depth, in any case, with words or a year
    beside (`train2017`, `my-set_val`); what lies beside `train` in a folder for unlabelled images is trained on too.
    Of `images` and `masks` side by side only the images are used. What is left tells classes by its first folder.
    """
    folders = [name.split("/")[:-1] for name in names]
    pictures = [name.lower().endswith(PICTURES) for name in names]
    pictures = pictures if any(pictures) else [True] * len(names)
    seen = [i for i, is_picture in enumerate(pictures) if is_picture]
    shared = common([folders[i] for i in seen])
    rest = [parts[shared:] for parts in folders]  # without a folder that contains everything
    place, roles = split_level(rest, seen)
    notes: list[str] = []
    found = [roles.get(parts[place].lower(), "train") if len(parts) > place else "train" for parts in rest]
    if roles:
        names_of = named(rest, place, seen)
        rest = [[*parts[:place], *parts[place + 1 :]] for parts in rest]
        rest, found, without = unlabelled_inside(rest, found)
        names_of |= without
        rest = [parts[1:] if parts and parts[0].lower() in WORD_OF else parts for parts in rest]  # train/train/cat
        again = common([rest[i] for i in seen if found[i] != UNLABELLED])  # train/all/cat
        rest = [parts[again:] for parts in rest]
        found, note = used(found, [bool(parts) for parts in without_masks(rest, found, seen)[0]], seen, names_of)
        notes += note
    else:
        rest, found, without = unlabelled_inside(rest, found)
        notes += [f"images in {name} have no label: used for training and embedded" for name in without.values()]
    rest, found, note = without_masks(rest, found, seen)
    return Layout(found, [parts[0] if parts else "" for parts in rest], pictures, bool(roles), (*notes, *note))


def common(folders: Sequence[Sequence[str]]) -> int:
    """The number of leading folders that all files share."""
    first, shared = folders[0] if folders else [], 0
    while shared < len(first) and all(len(f) > shared and f[shared] == first[shared] for f in folders):
        shared += 1
    return shared


def named(rest: Sequence[Sequence[str]], place: int, seen: Sequence[int]) -> dict[str, str]:
    """The names of the folders of each role, in their own spelling."""
    found: dict[str, set[str]] = {}
    for i in seen:
        if len(rest[i]) > place:
            found.setdefault(role(rest[i][place]) or "train", set()).add(rest[i][place])
    return {kind: ", ".join(map(repr, sorted(folders))) for kind, folders in found.items()}


def unlabelled_inside(
    rest: Sequence[list[str]], roles: Sequence[str]
) -> tuple[list[list[str]], list[str], dict[str, str]]:
    """Move training files in a folder `unlabelled` beside other folders to the role "unlabelled", and drop a folder
    `labelled` beside it. Also returns the name of the folder by its role."""
    pairs = list(zip(rest, roles, strict=True))
    bare = {parts[0] for parts, kind in pairs if kind == "train" and parts and parts[0].lower().startswith(BARE)}
    if not bare or bare == {parts[0] if parts else "" for parts, kind in pairs if kind == "train"}:
        return list(rest), list(roles), {}
    kinds = [UNLABELLED if kind == "train" and parts and parts[0] in bare else kind for parts, kind in pairs]
    shorter = [
        parts[1:] if kind == "train" and parts and parts[0].lower() in WITH_LABELS else parts for parts, kind in pairs
    ]
    return shorter, kinds, {UNLABELLED: ", ".join(map(repr, sorted(bare)))}


def split_level(rest: Sequence[Sequence[str]], seen: Sequence[int]) -> tuple[int, dict[str, str]]:
    """The depth at which folders are splits, and the role of each of their lower-case names; (0, {}) for none."""
    for place in (0, 1):
        here = Counter(rest[i][place].lower() for i in seen if len(rest[i]) > place)
        loose = len(seen) - here.total()
        roles = {name: role(name) for name in here}
        if UNLABELLED in roles.values():  # a folder `labelled` beside it is for training
            roles |= {name: "train" for name in here if name in WITH_LABELS}
        others = {beside(name) for name in here}
        if len(set(roles.values())) < 2 or "train" not in roles.values() or "" in roles.values():
            continue
        if len(others) == 1 and loose <= (FEW * len(seen) if place == 0 else 0):
            return place, roles
    return 0, {}


def words(folder: str) -> list[str]:
    return re.split(r"[-_. ]|(?<=\D)(?=\d)", folder.lower())


def role(folder: str) -> str:
    """The split that a folder's name names, or ""."""
    found = [WORD_OF[word] for word in words(folder) if word in WORD_OF]
    return UNLABELLED if set(found) == {"train", UNLABELLED} else found[0] if found else ""


def beside(folder: str) -> tuple[str, ...]:
    """A folder's name without the words for splits; folders are splits only if this is the same for all of them."""
    return tuple(word for word in words(folder) if word not in WORD_OF and word not in FILLERS)


def used(
    roles: Sequence[str], in_class: Sequence[bool], seen: Sequence[int], names_of: dict[str, str]
) -> tuple[list[str], list[str]]:
    """Choose the splits for training and testing: the test images are those of "test", or else of "validation".

    Where the training images lie in folders, which may be classes, so must the test images.
    """
    classes = any(in_class[i] for i in seen if roles[i] == "train")
    fits = {kind for kind in ("test", "validation") if any(roles[i] == kind and in_class[i] >= classes for i in seen)}
    test = "test" if "test" in fits else "validation" if "validation" in fits else ""
    notes = []
    for kind in ("test", "validation"):
        if kind in names_of and kind != test:
            why = "its images are not in class folders" if kind not in fits else f"{names_of[test]} is the test set"
            notes.append(f"folder {names_of[kind]} is not used: {why}")
    told = [f"{names_of['train']} is for training"]
    if UNLABELLED in names_of:
        told.append(f"so is {names_of[UNLABELLED]}, whose images have no label")
    if test:
        told.append(f"{names_of[test]} is for testing")
    role_of = {"train": "train", UNLABELLED: UNLABELLED, test: "test"}
    return [role_of.get(kind, "") for kind in roles], [f"the folders are splits: {', '.join(told)}", *notes]


def without_masks(
    rest: Sequence[list[str]], roles: list[str], seen: Sequence[int]
) -> tuple[list[list[str]], list[str], list[str]]:
    """Shorten the paths of files in a folder `images` to start there; files in `masks` beside it are not used."""
    here = {rest[i][0].lower() if rest[i] else "" for i in seen if roles[i]}
    if not here & set(IMAGES) or not here <= {*IMAGES, *MASKS}:
        return list(rest), roles, []
    masks = sorted({rest[i][0] for i in seen if roles[i] and rest[i] and rest[i][0].lower() in MASKS})
    kept = [kind if not parts or parts[0].lower() not in MASKS else "" for parts, kind in zip(rest, roles, strict=True)]
    shorter = [parts[1:] if parts and parts[0].lower() in IMAGES else parts for parts in rest]
    note = f"folder {', '.join(map(repr, masks))} is not used: its name suggests masks or labels drawn over the images"
    return shorter, kept, [note] if masks else []
