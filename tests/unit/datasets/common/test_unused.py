"""What frames do not use is counted by reason, and the first names are listed."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.datasets.common.unused import Unused

ROOT = Path("/data/set")
NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True).map(sorted)


@given(NAMES, NAMES)
def test_pairs_and_what_is_left_are_all_that_was_there(images: list[str], depths: list[str]):
    unused = Unused(ROOT)
    files = [ROOT / f"image/{name}.png" for name in images]
    maps = [ROOT / f"depth/{name}.npy" for name in depths]
    both = [name for name in images if name in depths]
    pairs = unused.match(files, maps)
    assert [(image.stem, depth.stem) for image, depth in pairs] == [(n, n) for n in both]
    assert list(
        Unused(ROOT).with_depth(files, maps, lambda path: ROOT / f"depth/{path.stem}.npy")
    ) == [image for image, _ in pairs]
    expected = []
    for all_names, what in ((images, "images have no depth"), (depths, "files of depth have no")):
        if alone := len(all_names) - len(both):
            expected.append(f"{alone} of {len(all_names)} {what}")
    reasons = unused.reasons()
    assert len(reasons) == len(expected)
    assert all(map(str.startswith, reasons, expected))


def test_reasons_add_up_over_folders():
    unused = Unused(ROOT)
    for folder in "abcd":
        unused.add("images are blurred", 2, [ROOT / folder / "0.png"])
    unused.add("images are dark", 5, [])
    unused.add("frames are not there", 1, [Path("/elsewhere/1.png")])
    assert unused.reasons() == [
        "4 of 8 images are blurred (a/0.png, b/0.png, c/0.png, ...)",
        "1 of 1 frames are not there (/elsewhere/1.png)",
    ]
