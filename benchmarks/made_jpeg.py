"""Slices packed as JPEG Lossless, as most CT from hospitals is."""

from __future__ import annotations

from pathlib import Path

SV1 = "1.2.840.10008.1.2.4.70"


def pack(plain: Path, packed: Path) -> None:
    """Write the file `plain` again with its pixels packed, by gdcm, which comes with the tests."""
    import gdcm

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(plain))
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(SV1)))
    if reader.Read():
        change.SetInput(reader.GetImage())
    if not change.Change():
        raise RuntimeError(f"gdcm cannot pack {plain}")
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(packed))
    if not writer.Write():
        raise RuntimeError(f"gdcm cannot write {packed}")
