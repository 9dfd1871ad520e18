"""A study's result as DICOM: a Comprehensive SR with the probabilities (TID 1500), and the picture as a capture.

Patient and study are those of the slice that drives the study, element by element as they stand there. UIDs that are
none, as RSNA's, give way to 2.25. ones made from them. Only here is highdicom imported.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

import highdicom
import numpy as np
from highdicom import sr
from PIL import Image
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import RE_VALID_UID, CTImageStorage, ExplicitVRLittleEndian

from ich_tfrecords import NOT_A_DEVICE, __version__
from ich_tfrecords.storage.sources import UnreadableSource
from ich_tfrecords.views.montage import BACKGROUND, MARGIN_PX
from trainer.prediction.pen import WARNING_PX, Pen
from trainer.prediction.slice_stream import FoundSlice
from trainer.prediction.triage import Study

# PS3.3 C.7.1.1, C.7.2.1 and C.7.2.2: who the patient is and which study it is, and nothing else of a person
PATIENT = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge"),
    *("PatientIdentityRemoved", "DeidentificationMethod"),
)
STUDY = ("StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber", "ReferringPhysicianName")
LAST = 0x00200010  # StudyID: the last element of a source that is looked at
MAKER = "ich-tfrecords"
SCHEME = "99ICHTF"  # of labels without a code that fits
# SNOMED CT where a concept means what the label does; one that nearly does would say what no model found
FINDINGS = {
    "any": sr.CodedConcept("1386000", "SCT", "Intracranial hemorrhage"),
    "subarachnoid": sr.CodedConcept("21454007", "SCT", "Subarachnoid intracranial hemorrhage"),
}
MOST_UID = 64  # characters
REPORT, PICTURE = 9101, 9102  # numbers of the new series, above those of scanners
_NAMESPACE = uuid.UUID("5d0d2c0e-7d0b-5f5e-9a53-0c5f0f0e7a11")  # of the UIDs made from others


class Source(NamedTuple):
    """The slice that drives a study. `identity`: its `PATIENT` and `STUDY` elements; `frame`: 0 where it is a file.

    `replaced`: whether a UID was none.
    """

    identity: Dataset
    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class_uid: str
    frame: int
    replaced: bool


class MadeBy(NamedTuple):
    """The model: kind of network, sha256 of its weights, fingerprint of the data set it was trained on."""

    network: str
    digest: str
    trained_on: str


def valid_uid(text: str) -> str:
    """`text` where it is a UID (PS3.5 9.1), else a 2.25. one that follows from it (PS3.5 B.2)."""
    return text if _is_uid(text) else f"2.25.{uuid.uuid5(_NAMESPACE, text).int}"


def _is_uid(text: str) -> bool:
    return len(text) <= MOST_UID and re.fullmatch(RE_VALID_UID, text) is not None


def source(elements: Dataset, driver: FoundSlice) -> Source:
    """The source of a study, of the `elements` of the file of its `driver` up to `LAST`.

    Raises `UnreadableSource` where that is another slice by now: its patient would be another one.
    """
    found = [str(elements.get(f"{level}InstanceUID", "")).strip(" \0") for level in ("Study", "Series", "SOP")]
    frame = driver.ref.frame
    if found[:2] != [driver.study_uid, driver.series_uid] or not (frame or found[2] == driver.sop_uid):
        raise UnreadableSource("changed", "the file is another slice by now")
    identity = Dataset()
    for keyword in (*PATIENT, *STUDY):
        if elements.get(keyword) not in (None, ""):
            identity[keyword] = elements[keyword]
    study, series, sop = uids = [valid_uid(text) for text in found]
    named = str(elements.get("SOPClassUID", ""))
    sop_class = named if _is_uid(named) else CTImageStorage
    return Source(identity, study, series, sop, sop_class, frame, uids != found)


def report(of: Source, by: MadeBy, probabilities: Mapping[str, float], study: Study) -> Dataset:
    """Comprehensive SR: for each label its probability of the study."""
    content = _content(of, by, probabilities)
    document = sr.ComprehensiveSR(
        evidence=[_evidence(of)],
        content=content,
        series_number=REPORT,
        is_complete=not study.partial,
        specific_character_set="ISO_IR 192",
        **_common("Probabilities of a model. Not a medical device"),
    )
    seen = f"judged by {study.partial or 'every slice'}"
    document.CompletionFlagDescription = f"{'OUT OF SCOPE, ' * study.is_strange}{seen}"[:64]
    document.CodingSchemeIdentificationSequence = [_scheme()]
    return _identified(document, of)


def capture(of: Source, by: MadeBy, picture: Image.Image) -> Dataset:
    """Secondary capture of an RGB picture, with the warning burnt in below it."""
    image = highdicom.sc.SCImage.from_ref_dataset(
        _evidence(of),
        np.asarray(_warned(picture)),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        series_number=PICTURE,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set="ISO_IR 192",
        **_common("Explained picture. Not a medical device"),
    )
    image.PatientOrientation = []  # several panels have none
    image.Laterality = ""  # of no paired part
    image.ConversionType = "WSD"
    image.BurnedInAnnotation = "NO"  # UIDs and probabilities, nobody's name
    image.DerivationDescription = f"What model {by.network}, weights {by.digest}, finds. {NOT_A_DEVICE}"
    image.SourceImageSequence = [_reference(of)]
    return _identified(image, of)


def _common(description: str) -> dict[str, Any]:
    return {
        "series_instance_uid": highdicom.UID(),
        "sop_instance_uid": highdicom.UID(),
        "instance_number": 1,
        "manufacturer": MAKER,
        "manufacturer_model_name": "trainer.predict",
        "software_versions": __version__,
        "series_description": description,
    }


def _content(of: Source, by: MadeBy, probabilities: Mapping[str, float]) -> sr.MeasurementReport:
    name = f"{MAKER} {by.network}"
    facts = (f"weights sha256 {by.digest}", f"trained on data set {by.trained_on}", NOT_A_DEVICE)
    algorithm = sr.AlgorithmIdentification(name, __version__, facts, manufacturer=MAKER)
    frames = [of.frame] if of.frame else None
    groups = [
        sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(highdicom.UID(), label),
            finding_type=finding(label),
            algorithm_id=algorithm,
            measurements=[sr.Measurement(codes.DCM.Probability, value, codes.UCUM.NoUnits)],
            source_images=[sr.SourceImageForMeasurementGroup(of.sop_class_uid, of.sop_uid, frames)],
        )
        for label, value in probabilities.items()
    ]
    device = sr.DeviceObserverIdentifyingAttributes(valid_uid(by.digest), f"{name}. {NOT_A_DEVICE}", MAKER, by.network)
    observer = sr.ObserverContext(codes.DCM.Device, device)
    context = sr.ObservationContext(observer_device_context=observer)
    return sr.MeasurementReport(context, codes.SCT.ComputedTomographyOfHead, groups)


def finding(label: str) -> sr.CodedConcept:
    """The code of a label: SNOMED CT where one means the same, else our own."""
    return FINDINGS.get(label) or sr.CodedConcept(label, SCHEME, label[:64])


def _scheme() -> Dataset:
    """Item of the Coding Scheme Identification Sequence (PS3.3 C.12.1) for codes of our own."""
    item = Dataset()
    item.CodingSchemeDesignator = SCHEME
    item.CodingSchemeName = "Labels of ich-tfrecords"
    item.CodingSchemeResponsibleOrganization = MAKER
    return item


def _evidence(of: Source) -> Dataset:
    """What highdicom takes study and references from. Patient and study are put in later, as they stand."""
    made = Dataset()
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", *STUDY):
        setattr(made, keyword, None)
    made.StudyInstanceUID, made.SeriesInstanceUID = of.study_uid, of.series_uid
    made.SOPInstanceUID, made.SOPClassUID = of.sop_uid, of.sop_class_uid
    return made


def _reference(of: Source) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = of.sop_class_uid, of.sop_uid
    if of.frame:
        item.ReferencedFrameNumber = of.frame
    purpose = codes.DCM.SourceImageForImageProcessingOperation
    item.PurposeOfReferenceCodeSequence = [sr.CodedConcept.from_code(purpose)]
    return item


def _identified(made: Dataset, of: Source) -> Dataset:
    """`made` with patient and study as the source has them, in UTF-8."""
    for element in of.identity:
        made[element.tag] = element
    return made


def _warned(picture: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (picture.width, picture.height + WARNING_PX + MARGIN_PX), BACKGROUND)
    canvas.paste(picture, (0, 0))
    Pen(canvas).warning((MARGIN_PX, picture.height), NOT_A_DEVICE, picture.width - 2 * MARGIN_PX)
    return canvas
