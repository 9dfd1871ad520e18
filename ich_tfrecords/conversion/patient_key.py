"""The secret that keys the hash of patient ids, and where it stands."""

from __future__ import annotations

import dataclasses
import errno

from ich_tfrecords.dataset import splits
from ich_tfrecords.storage.bucket_path import AnyPath

KEY_BYTES = range(16, 65)


@dataclasses.dataclass(frozen=True)
class PatientKey:
    """Where the secret stands: in `file`, or (None) in the spec's public `salt`.

    This is what workers are sent; the secret itself enters no job graph, log or work file. `check`, its own keyed
    hash, tells whether a worker finds the one that the launcher saw.
    """

    salt: str
    file: AnyPath | None
    check: str

    def secret(self) -> bytes:
        """The key of the hash. Raises `OSError` when its file cannot be read or has changed."""
        changed = OSError(errno.ESTALE, "the patient key changed while the conversion ran; put it back", str(self.file))
        try:
            found = read_secret(self.salt, self.file)
        except ValueError as error:
            raise changed from error
        if splits.patient_key("check", found) != self.check:
            raise changed
        return found


def patient_key(salt: str, file: AnyPath | None) -> PatientKey:
    """The key that stands in `file` or in `salt`. Raises `ValueError` for a file that holds none, and `OSError`."""
    return PatientKey(salt, file, splits.patient_key("check", read_secret(salt, file)))


def read_secret(salt: str, file: AnyPath | None) -> bytes:
    """The secret's bytes. Raises `ValueError`, `OSError`."""
    if file is None:
        return splits.public_secret(salt)
    key = file.read_bytes().strip()
    if len(key) not in KEY_BYTES:
        raise ValueError(f"{file} holds {len(key):,} bytes; a patient key has {KEY_BYTES[0]} to {KEY_BYTES[-1]}")
    return key
