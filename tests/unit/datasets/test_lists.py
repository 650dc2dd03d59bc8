"""The official lists: complete, without duplicates, equal to the original files."""

from __future__ import annotations

import re
from collections import Counter
from importlib import resources

import pytest

from modality_forcing.datasets.common.frame_names import official_names, read_list
from modality_forcing.evaluation.benchmarks.registry import BENCHMARKS

SIZES = {"nyuv2": 654, "kitti": 652, "eth3d": 454, "scannet": 800, "diode": 771}
# Images of each scene in the file of the source.
ETH3D_SCENES = {
    "courtyard": 38, "delivery_area": 44, "electro": 45, "facade": 76, "kicker": 31, "meadow": 15,
    "office": 26, "pipes": 14, "playground": 38, "relief": 31,
    "relief_2": 31, "terrace": 23, "terrains": 42,
}  # fmt: skip
UNSEEN = "# without ground truth: "  # how KITTI's list marks the frames that are not scored
FORMS = {
    "nyuv2": r"test/[a-z_]+_\d{4}/rgb_\d{4}",
    "kitti": r"(\d{4}_\d\d_\d\d)/\1_drive_\d{4}_sync/image_02/data/\d{10}",
    "eth3d": r"[a-z_2]+/DSC_\d{4}",
    "scannet": r"scene0\d{3}_0\d/00\d\d00",
    "diode": r"(indoors|outdoor)/scene_(000\d\d)/scan_(00\d{3})/\2_\3_\1_\d\d0_0\d0",
}


def test_exactly_the_sets_with_a_native_layout_have_a_list() -> None:
    kept = resources.files("modality_forcing.datasets") / "lists"
    assert {path.name for path in kept.iterdir()} == {f"{name}.txt" for name in SIZES}


@pytest.mark.parametrize("name", SIZES)
def test_list_has_the_official_length_and_distinct_well_formed_names(name: str) -> None:
    names = official_names(name)
    assert len(names) == SIZES[name] == BENCHMARKS[name].num_images
    assert len(set(names)) == len(names)
    assert [frame for frame in names if not re.fullmatch(FORMS[name], frame)] == []


@pytest.mark.parametrize(
    ("name", "line", "length"),
    [
        ("nyuv2", "test/{0}/rgb_{1}.png test/{0}/depth_{1}.png test/{0}/filled_{1}.png", 66803),
        (
            "eth3d",
            "rgb/{0}/images/dslr_images/{1}.JPG "
            "depth/{0}_dslr_depth/{0}/ground_truth_depth/dslr_images/{1}.JPG",
            55893,
        ),
        ("scannet", "{0}/color/{1}.jpg {0}/depth/{1}.png", 47999),
        ("diode", "{0}/{1}.png {0}/{1}_depth.npy {0}/{1}_depth_mask.npy", 158825),
    ],
)
def test_list_in_its_original_form_has_the_original_length(
    name: str, line: str, length: int
) -> None:
    """The lengths are those of prs-eth/Marigold's files, without the last line break."""
    parts = (frame.rsplit("/", 1) for frame in official_names(name))
    lines = [
        line.format(folder.removeprefix("test/"), file.removeprefix("rgb_"))
        for folder, file in parts
    ]
    assert len("\n".join(lines)) == length


def test_nyuv2_indices_increase() -> None:
    numbers = [int(frame[-4:]) for frame in official_names("nyuv2")]
    assert numbers == sorted(numbers)
    assert (numbers[0], numbers[-1]) == (1, 1449)


def test_eth3d_has_the_images_of_its_scenes() -> None:
    assert Counter(frame.split("/")[0] for frame in official_names("eth3d")) == ETH3D_SCENES


def test_scannet_is_sorted_and_has_271_scenes() -> None:
    names = official_names("scannet")
    assert list(names) == sorted(names)
    assert len({frame.split("/")[0] for frame in names}) == 271


def test_diode_has_both_halves() -> None:
    assert Counter(frame.split("/")[0] for frame in official_names("diode")) == {
        "indoors": 325,
        "outdoor": 446,
    }


def test_kitti_names_652_of_697_and_keeps_the_others_as_comments() -> None:
    text = (resources.files("modality_forcing.datasets") / "lists" / "kitti.txt").read_text(
        encoding="utf-8"
    )
    unseen = read_list(
        "\n".join(
            line.removeprefix(UNSEEN) for line in text.splitlines() if line.startswith(UNSEEN)
        )
    )
    seen = official_names("kitti")
    assert len(unseen) == 45
    assert not set(seen) & set(unseen)
    # Eigen et al. took 25 frames of each of 28 drives, and all 22 of the one that has fewer.
    drives = Counter(frame.split("/")[1] for frame in seen + unseen)
    assert len(drives) == 28
    assert drives.pop("2011_09_26_drive_0048_sync") == 22
    assert set(drives.values()) == {25}


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("nyuv2", "test/kitchen_0004/rgb_0001", "test/dining_room_0036/rgb_1449"),
        (
            "kitti",
            "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069",
            "2011_10_03/2011_10_03_drive_0047_sync/image_02/data/0000000768",
        ),
        ("eth3d", "office/DSC_0219", "electro/DSC_9303"),
        ("scannet", "scene0011_00/000000", "scene0704_01/001200"),
        (
            "diode",
            "indoors/scene_00021/scan_00189/00021_00189_indoors_200_010",
            "outdoor/scene_00024/scan_00202/00024_00202_outdoor_150_040",
        ),
    ],
)
def test_first_and_last_names_of_each_list(name: str, first: str, last: str) -> None:
    names = official_names(name)
    assert (names[0], names[-1]) == (first, last)
