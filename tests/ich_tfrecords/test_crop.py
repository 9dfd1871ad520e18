"""The square around the head: by hand, beside a plain oracle, and never a head cut in half."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords import crop, pixels, spec
from ich_tfrecords.crop import Square
from ich_tfrecords.dicom import ct_slice

AIR, BRAIN, BONE = -1000, 30, 1200


def slice_of(side: int, *heads: tuple[int, int, int], shell: int = 0) -> np.ndarray:
    """HU [side, side] of air with round heads (row, column, radius), and a shell so thick below them."""
    rows, columns = np.mgrid[:side, :side]
    hu = np.full((side, side), AIR, np.int16)
    for row, column, radius in heads:
        away = (rows - row) ** 2 + (columns - column) ** 2
        hu[away <= radius**2] = BONE
        hu[away <= (radius - side // 64) ** 2] = BRAIN
    if shell:
        away = np.hypot(rows - side / 2, columns - side / 2)
        hu[(abs(away - 0.46 * side) <= shell / 2) & (rows > side / 2)] = 100
    return hu


def plain(hu: np.ndarray) -> Square:
    """The rule step by step, with loops."""
    height = len(hu)
    block = height // 32
    if not block:
        return Square(0, 0, height)
    blocks = height // block
    filled = [
        [
            4 * int((hu[r * block : (r + 1) * block, c * block : (c + 1) * block] >= -200).sum()) >= 3 * block * block
            for c in range(blocks)
        ]
        for r in range(blocks)
    ]

    def longest(counts):
        best, at = (0, 0, 0), 0
        while at < len(counts):
            end = at
            while end < len(counts) and counts[end] >= 2:
                end += 1
            if sum(counts[at:end]) > best[0]:
                best = (sum(counts[at:end]), at, end)
            at = max(end, at + 1)
        return best[1:]

    first, last = longest([sum(row) for row in filled])
    left, right = longest([sum(row[c] for row in filled[first:last]) for c in range(blocks)])
    most = max(last - first, right - left)
    side = min(max((most + 2) * block, height // 2), height)
    top = min(max((first + last) * block - side, 0) // 2, height - side)
    corner = min(max((left + right) * block - side, 0) // 2, height - side)
    inside = int((hu[top : top + side, corner : corner + side] >= -200).sum())
    found = most > 0 and 2 * inside >= int((hu >= -200).sum())
    return Square(top, corner, side) if found else Square(0, 0, height)


@pytest.mark.parametrize(
    ("hu", "expected"),
    [
        (slice_of(512), Square(0, 0, 512)),  # air
        (np.full((512, 512), BRAIN, np.int16), Square(0, 0, 512)),
        (slice_of(512, (256, 256, 160)), Square(80, 80, 352)),  # 20 blocks of 16, and one on each side
        (slice_of(512, (200, 300, 160)), Square(32, 128, 336)),
        (slice_of(512, (160, 352, 160)), Square(0, 160, 352)),  # at a corner it stays inside
        (slice_of(512, (256, 256, 160), shell=8), Square(80, 80, 352)),  # a headrest does not count
        (slice_of(512, (256, 256, 24)), Square(128, 128, 256)),  # the top of a head: half of the slice at least
        (slice_of(31, (15, 15, 10)), Square(0, 0, 31)),  # too small for blocks
    ],
)
def test_squares(hu, expected):
    assert crop.head_square(hu) == expected == plain(hu)


@given(
    st.integers(1, 150),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5)), max_size=3),
    st.integers(0, 4),
    st.floats(0, 1),
)
def test_any_slice_as_the_plain_rule(side, heads, shell, noise):
    hu = slice_of(side, *((int(r * side), int(c * side), int(size * side)) for r, c, size in heads), shell=shell)
    rng = np.random.default_rng(0)
    hu = np.where(rng.random(hu.shape) < 0.3 * noise, rng.integers(-1100, 500, hu.shape), hu).astype(np.int16)
    found = crop.head_square(hu)
    assert found == plain(hu)
    assert 0 <= found.top <= side - found.side
    assert 0 <= found.left <= side - found.side
    assert side // 2 <= found.side <= side


def test_a_skull_without_a_brain_is_not_cut():
    """As a phantom shows: its ring fills few blocks, and a square around these would cut it."""
    hu = slice_of(512, (200, 256, 120))
    hu[hu == BRAIN] = AIR
    assert crop.head_square(hu) == Square(0, 0, 512)


def test_the_image_is_that_of_the_square():
    image = spec.load("rsna_ich").image
    head = dataclasses.replace(image, crop="head")
    hu = slice_of(500, (200, 300, 150))[:, 60:]  # 440 columns, which are padded first
    square = crop.head_square(pixels.pad_square(hu, image.pad_hu))
    expected = pixels.image_of(crop.cut(pixels.pad_square(hu, image.pad_hu), square), image)
    assert square.side < 500
    np.testing.assert_array_equal(pixels.image_of(hu, head), expected)
    np.testing.assert_array_equal(pixels.image_of(slice_of(512), head), pixels.image_of(slice_of(512), image))


@pytest.mark.real
def test_real_heads_keep_their_tissue(real_dicom_dir: Path):
    """What is left out of a head is air, headrest and the tip of an ear; the square moves little between neighbours."""
    squares = []
    for path in sorted((real_dicom_dir / "ge_head").glob("*.dcm")):
        hu = ct_slice.read_slice(path.read_bytes()).hu
        square = crop.head_square(hu)
        squares.append(square)
        tissue = hu >= crop.TISSUE_HU
        assert crop.cut(tissue, square).sum() >= 0.88 * tissue.sum()
        bone = hu >= 700  # more than a headrest has
        assert crop.cut(bone, square).sum() >= 0.98 * bone.sum()
    assert max(square.side for square in squares) < 512
    steps = np.abs(np.diff([square.side for square in squares]))
    assert steps.max() <= 64


# in a spec


def test_a_spec_without_it_is_what_it_was(tmp_path):
    packaged = spec.load("rsna_ich")
    assert packaged.image.crop == "none"
    assert "crop" not in spec.canonical_json(packaged)
    assert spec.from_dict(json.loads(spec.canonical_json(packaged))) == packaged


def test_a_spec_with_it(tmp_path):
    (tmp_path / "head.yaml").write_text("extends: rsna_ich\nname: cropped\nimage: {crop: head}\n")
    found = spec.load(str(tmp_path / "head.yaml"))
    assert found.image.crop == "head"
    assert spec.from_dict(spec.to_dict(found)) == found
    assert spec.fingerprint(found) != spec.fingerprint(spec.load("rsna_ich"))
    assert "image.crop: none, now head" in spec.differences(spec.load("rsna_ich"), found)
    (tmp_path / "head.yaml").write_text("extends: rsna_ich\nimage: {crop: heads}\n")
    with pytest.raises(spec.SpecError, match="crop is 'heads'; write none or head"):
        spec.load(str(tmp_path / "head.yaml"))
