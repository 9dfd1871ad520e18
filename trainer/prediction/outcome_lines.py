"""What predict says at its end, line by line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from ich_tfrecords.dataset import series_choice
from ich_tfrecords.dicom import jpeg_compiled
from ich_tfrecords.plural import counted
from ich_tfrecords.storage import packed
from ich_tfrecords.views.montage import shortened
from trainer.models.model_file import About
from trainer.prediction import triage
from trainer.prediction.panel import Panel
from trainer.prediction.triage import Study, Triage
from trainer.results import conformal
from trainer.results.conformal import Promise
from trainer.shell.display import count

SHOWN_STUDIES, SHOWN_REASONS = 10, 4
# what ranks studies, by whether the model sees series
RANKS = {
    False: "greatest probability of any hemorrhage in one slice",
    True: "own probability of any hemorrhage, of the series head and the greatest slice together",
}


def ranked_by(about: About) -> str:
    """What the studies of a model are ranked by."""
    return RANKS[about.blend is not None]


def uncalibrated(about: About, found: Triage) -> Sequence[str]:
    """What is said in place of calibrated probabilities, a line for each label; of several models for each."""
    return found.panel.notes if found.panel else about.calibration.told()


def refused_of_studies(about: About, found: Triage) -> Collection[str]:
    """Labels whose probabilities of a study could not be calibrated."""
    if found.panel:
        return found.panel.refused
    return (about.calibration if about.blend is None else about.blend.study_calibration).refused


def outcome(about: About, place: str, found: Triage, ignored: Counter[str], seconds: float) -> Iterator[str]:
    """The sentences of a single slice, or the head of the triage list, and what is to be known of it.

    `place`: of the model; `ignored`: files left aside, by suffix.
    """
    yield from _of_studies(about, found)
    yield from (*about.notes(place), *uncalibrated(about, found))
    studies, rate = counted(len(found.studies()), "study", "studies"), count(found.slices / seconds)
    yield f"{counted(found.slices, 'slice')} of {studies}, {rate} slices/s"
    if found.panel:
        yield from _disagreed(found, found.panel)
    if found.promise:
        yield from _promised(about, found, found.promise)
    if ignored:
        yield f"{counted(ignored.total(), 'file')} with other suffixes left aside: {packed.counted(ignored)}"
    if archives := packed.unread(ignored):
        yield archives
    if never := found.never.total():
        yield f"{counted(never, 'file')} of other kinds than axial CT slices: {reasons(found.never)}"
    yield from filter(None, [*found.notes, jpeg_compiled.note()])
    if lost := found.rejects - found.never - Counter({series_choice.OTHER: found.rejects[series_choice.OTHER]}):
        yield f"{counted(lost.total(), 'file')} without a prediction: {reasons(lost)}"
    if strange := found.strange():
        yield from _strange(strange)
    if partial := found.partial():
        studies = counted(len(partial), "study is", "studies are")
        yield f"{studies} ranked by a part of the slices (triage.csv: partial); what is missing may be worse"
    if found.astray:
        files = counted(found.astray, "file that tells no study", "files that tell no study")
        yield f"{files} could not be read; any study may lack them"
    if unread := found.without_slices():
        yield f"{counted(len(unread), 'study', 'studies')} without any prediction, at the end of triage.csv"


def _strange(studies: Sequence[Study]) -> Iterator[str]:
    """Which studies are out of scope, the first of them by name."""
    are = counted(len(studies), "study is", "studies are")
    yield f"{are} unlike what the model was trained on and ranked behind the others (triage.csv: in_scope); read them:"
    yield from (f"  {shortened(study.study_uid)}: {study.scope.reason}" for study in studies[:SHOWN_STUDIES])
    if len(studies) > SHOWN_STUDIES:
        yield f"  and {len(studies) - SHOWN_STUDIES:,} more"


def _promised(about: About, found: Triage, promise: Promise) -> Iterator[str]:
    """How many studies are called what, of the label "any", and what that is worth."""
    at = about.spec.labels.names.index(about.spec.labels.any)
    called = Counter(study.groups[at] for study in found.studies())
    told = ", ".join(f"{called[group]:,} {group}" for group in conformal.GROUPS)
    yield f"{about.spec.labels.any}: {told}; {promise.sentence()}"
    yield from conformal.notes(about.facts["conformal"], promise.alpha)


def _disagreed(found: Triage, panel: Panel) -> Iterator[str]:
    """In how many studies some of several models call a label positive and others not."""
    apart = Counter(name for study in found.studies() for name in panel.disagreed(study.opinions))
    told = ", ".join(f"{name} in {counted(apart[name], 'study', 'studies')}" for name in panel.labels if apart[name])
    yield f"mean of {len(panel.thresholds)} models; they disagree about {told or 'no study'} (triage.csv: disagreed)"


def _of_studies(about: About, found: Triage) -> Iterator[str]:
    labels, studies = about.spec.labels, found.studies()
    if found.slices == 1:
        yield from triage.sentences(studies[0].driver, labels)
        if studies[0].is_strange:
            yield studies[0].strangeness
        if studies[0].partial:
            yield f"PARTIAL: this is {studies[0].partial}"
    elif studies:
        yield f"studies, most urgent first, by their {ranked_by(about)}"
        yield from triage.table(studies, labels, SHOWN_STUDIES, refused_of_studies(about, found))


def reasons(rejects: Counter[str]) -> str:
    """`5 truncated, 1 not_ct`, the most frequent first, of a few."""
    return ", ".join(f"{files:,} {reason}" for reason, files in rejects.most_common(SHOWN_REASONS))
