"""gdcm as a decoder in a process of its own, which some damaged streams end and others never let go."""

from __future__ import annotations

import select
import subprocess
import sys
import tempfile

STALL_S = 5.0  # a small stream takes a millisecond


class Gdcm:
    """Decodes files one by one; a process that is gone is started anew."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Gdcm:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def decoded(self, file: bytes) -> bytes | str:
        """Stored values, little-endian, in as few bytes as the stream needs; or `refused`, `crashed`, `stalled`."""
        self.child = self.child or subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        with tempfile.NamedTemporaryFile(suffix=".dcm") as place:
            place.write(file)
            place.flush()
            return self._answer(self.child, place.name)

    def _answer(self, child: subprocess.Popen[bytes], name: str) -> bytes | str:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"{name}\n".encode())
        child.stdin.flush()
        if not select.select([child.stdout], [], [], STALL_S)[0]:
            self._end()
            return "stalled"
        size = child.stdout.read(8)
        if len(size) < 8:
            self._end()
            return "crashed"
        data = child.stdout.read(int.from_bytes(size, "big"))
        return data or "refused"

    def _end(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.communicate()
        self.child = None


def serve() -> None:
    """Answer each name of a file on stdin with the length of its stored values and these; 0 where there are none."""
    import gdcm

    gdcm.Trace.ErrorOff()
    gdcm.Trace.WarningOff()
    for line in sys.stdin:
        reader = gdcm.ImageReader()
        reader.SetFileName(line.strip())
        data = b""
        if reader.Read():
            data = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
        sys.stdout.buffer.write(len(data).to_bytes(8, "big") + data)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
