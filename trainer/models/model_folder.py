"""What lies in the folder of a trained model, and what a folder is that holds none."""

from __future__ import annotations

from pathlib import Path

MODEL = "model.keras"
ABOUT = "about.json"
SLICE = "slice"  # beside the context of a series model: the folder of its slice model
WRITTEN = ("export", "model")  # where a run writes its model: in its folder, and where Vertex AI asks for it
EXPORT_MARKS = ("saved_model.pb", "image.onnx")  # a file of each format that no other folder has


def is_model(folder: Path) -> bool:
    """Whether a model and what is to be known of it lie in a folder."""
    return (folder / MODEL).is_file() and (folder / ABOUT).is_file()


def is_export(folder: Path) -> bool:
    """Whether a SavedModel or ONNX lies in a folder, whose graph keeps the calibration it was written with."""
    return any((folder / mark).is_file() for mark in EXPORT_MARKS)


def what_else(folder: Path) -> str:
    """What a folder without a model is, and what to do."""
    if not folder.exists():
        return "does not exist; give the folder of a run (--job_dir of trainer.task) or of an export"
    if folder.is_file():
        return f"is a file; give the folder it lies in, with its {ABOUT}"
    if any(folder.glob("checkpoints/step-*.npz")):
        return "is a run whose training has not ended; the same train command goes on"
    if (folder / "config.yaml").is_file():
        return "is a run without a checkpoint, so there is no model yet; start its train command again"
    if is_export(folder):
        return f"is an export without {MODEL} and {ABOUT}; give one that python -m trainer.export wrote"
    return f"holds no {MODEL} with its {ABOUT}; give the folder of a run (--job_dir of trainer.task) or of an export"
