from __future__ import annotations

import pytest

from ich_tfrecords.problems import BY_NATURE, is_by_nature


def test_what_is_never_a_slice_and_what_is_a_lost_one():
    """Frozen: the limit of a conversion and the rank of a study rest on it."""
    never = {"not_dicom", "no_pixel_data", "color", "localizer", "derived_secondary", "not_ct", "not_axial"}
    lost = {"truncated", "empty_file", "wrong_pixel_length", "bad_geometry", "multi_frame", "no_rescale", "bad_bits"}
    lost |= {"no_position", "missing_id", "unsupported_syntax", "decode_failed", "too_large", "unreadable_file"}
    lost |= {"crc_mismatch", "inflate_failed", "size_mismatch", "bad_local_header", "changed"}
    lost |= {"no_label", "ambiguous_label", "duplicate_slice", "label_conflict", "label_incomplete"}
    assert never == BY_NATURE
    assert not lost & BY_NATURE


@pytest.mark.parametrize(
    ("name", "by_nature"),
    [
        ("LICENSE", True),
        ("cd2/README", True),
        ("AUTORUN.INF", True),
        ("notes2.txt", True),
        ("a.dcm", False),
        ("b/x.IMA", False),
        ("1.2.840.7", False),
        ("IM_0001", False),
        ("s1/LICENSE", True),
    ],
)
def test_what_is_called_like_a_slice_and_is_not_dicom_is_a_loss(name, by_nature):
    assert is_by_nature("not_dicom", name) is by_nature
    assert is_by_nature("localizer", name)
    assert not is_by_nature("truncated", name)
