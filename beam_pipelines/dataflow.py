"""Dataflow as the engine: flags that are complete, a job of its own for each step, or the step's template.

Beam submits a job, or writes a template where `--template_location` asks for one. A conversion is two jobs, one
after the other: what the second one works on is planned from what the first one wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, SetupOptions, WorkerOptions
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator

from beam_pipelines.progress import Progress
from ich_tfrecords.storage import buckets
from ich_tfrecords.storage.bucket_path import AnyPath

_PLACES = ("temp_location", "staging_location", "template_location")
_NAME_LENGTH = 40  # of the output's name in the name of a job
_AGAIN = "run the same command again"


class TemplateStaged(Exception):
    """Ends the command without a failure: a template lies in the bucket; the message says how to go on."""


class JobEnded(Exception):
    """A job that did not come to its end, or that is out of sight."""


def check(options: PipelineOptions) -> None:
    """Refuse flags that Dataflow would miss only after the work has begun; settle those that this package decides.

    Raises `ValueError`, and `ImportError` where Beam's part for Google Cloud is not installed.
    """
    _check_installed()
    cloud, setup = options.view_as(GoogleCloudOptions), options.view_as(SetupOptions)
    for flag in ("project", "region", "temp_location"):
        if not getattr(cloud, flag):
            raise ValueError(f"--{flag} is missing")
    _check_form(options)
    _check_package(options)
    # every function of the graph stands in a module that the package brings; a saved session would carry more
    setup.save_main_session = bool(setup.save_main_session)


def _check_installed() -> None:
    try:
        from apache_beam.runners.dataflow.internal import apiclient  # noqa: F401
    except ImportError as error:
        raise ImportError(f"needs Beam's part for Google Cloud ({error}); pip install 'apache-beam[gcp]'") from error


def _check_form(options: PipelineOptions) -> None:
    """Beam would make a bucket of its own in place of a --temp_location that it cannot use."""
    cloud = options.view_as(GoogleCloudOptions)
    judge = PipelineOptionsValidator(options, None)
    for flag in _PLACES:
        place = getattr(cloud, flag)
        if place is not None and (judge.validate_gcs_path(cloud, flag) or not place.rpartition("/")[2]):
            what = "gs://BUCKET/NAME" if flag == "template_location" else "gs://BUCKET/FOLDER"
            raise ValueError(f"--{flag} {place}: write {what}")


def _check_package(options: PipelineOptions) -> None:
    setup = options.view_as(SetupOptions)
    if not (setup.setup_file or setup.extra_packages or options.view_as(WorkerOptions).sdk_container_image):
        raise ValueError(
            "the workers lack this package; add --setup_file ./setup.py, or --sdk_container_image with an image "
            "that holds it"
        )
    if setup.setup_file:
        path = Path(setup.setup_file).absolute()  # Beam goes into its folder to build the package
        if path.name != "setup.py" or not path.is_file():
            raise ValueError(f"--setup_file {setup.setup_file}: no such file; name the setup.py of this package")
        setup.setup_file = str(path)


def check_places(options: PipelineOptions, output: AnyPath) -> None:
    """Refuse places of Beam's own files that lie in the data set or in no bucket. Raises `ValueError`, `OSError`.

    Beam would try for ten minutes to write to a bucket that is not there.
    """
    cloud = options.view_as(GoogleCloudOptions)
    for flag in _PLACES:
        place = getattr(cloud, flag)
        if place is None:
            continue
        if f"{place}/".startswith(f"{output}/"):
            raise ValueError(f"--{flag} {place} lies in --output {output}; name a folder outside it")
        bucket = place.split("/")[2]
        try:
            buckets.holds_any(bucket, "")
        except FileNotFoundError as error:
            raise ValueError(f"--{flag} {place}: there is no bucket {bucket}; make it, or check the name") from error


def name_step(options: PipelineOptions, step: str, output: AnyPath) -> None:
    """Give the job of a step, and its template, a name that says which step it is.

    Without `--job_name` the name follows from the output: Dataflow lets no two jobs of one name run, so that a
    command that lost sight of its job cannot start a second one beside it.
    """
    cloud = options.view_as(GoogleCloudOptions)
    cloud.job_name = f"{cloud.job_name or _job_name(output)}-{step}"
    if cloud.template_location:
        cloud.template_location = f"{cloud.template_location}-{step}"


def _job_name(output: AnyPath) -> str:
    name = re.sub("[^a-z0-9]+", "-", output.name.lower()).strip("-")[:_NAME_LENGTH]
    return "-".join(["ich", *filter(None, [name]), hashlib.sha256(str(output).encode()).hexdigest()[:8]])


def run(pipeline: beam.Pipeline, options: PipelineOptions, progress: Progress, log: Path) -> Any:
    """Submit the step's job and wait; returns its result. An interrupt cancels the job.

    Raises `TemplateStaged` where a template was asked for, and `JobEnded` for a job that did not succeed.
    """
    with _stderr_to(log):
        result = pipeline.run()
    if not result.has_job:
        raise TemplateStaged(_how_to_start(options))
    place = _place(result, options)
    print(place, file=sys.stderr, flush=True)
    try:
        with progress:
            _wait(result, place)
    except KeyboardInterrupt:
        _cancel(result, options)
        raise
    return result


@contextlib.contextmanager
def _stderr_to(log: Path) -> Iterator[None]:
    """Send what the tools that build the package say to the log; they write to the file that is stderr."""
    usual = os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(usual, 2)
        os.close(usual)


def _wait(result: Any, place: str) -> None:
    from apache_beam.runners.dataflow.dataflow_runner import DataflowRuntimeException

    try:
        result.wait_until_finish()
    except DataflowRuntimeException as error:
        why = str(error).partition("Error:\n")[2].strip().splitlines()[-1:]
        words = "without a message" if why in ([], ["None"]) else why[0]
        raise JobEnded(f"{place} ended as {result.state}: {words}") from error
    except Exception as error:  # whatever the connection raises; a bare assertion is among it
        logging.error("waiting for Dataflow", exc_info=error)
        raise JobEnded(f"lost sight of {place}, which may still run; when it has ended, {_AGAIN}") from error


def _place(result: Any, options: PipelineOptions) -> str:
    cloud = options.view_as(GoogleCloudOptions)
    where = f"https://console.cloud.google.com/dataflow/jobs/{cloud.region}/{result.job_id()}?project={cloud.project}"
    return f"Dataflow job {cloud.job_name} ({where})"


def _cancel(result: Any, options: PipelineOptions) -> None:
    """Ask Dataflow to end the job; where that fails, say how to do it by hand."""
    from apache_beam.runners.dataflow.dataflow_runner import DataflowRuntimeException
    from google.api_core.exceptions import GoogleAPIError

    cloud = options.view_as(GoogleCloudOptions)
    job = f"Dataflow job {cloud.job_name}"
    by_hand = f"gcloud dataflow jobs cancel {result.job_id()} --region {cloud.region} --project {cloud.project}"
    print(f"cancelling {job}; by hand: {by_hand}", file=sys.stderr, flush=True)
    told = f"{job} is being cancelled"
    try:
        result.cancel()
    except (DataflowRuntimeException, GoogleAPIError, KeyboardInterrupt) as error:
        logging.error("cancelling", exc_info=error)
        told = f"{job} still runs and costs; cancel it with: {by_hand}"
    print(told, file=sys.stderr, flush=True)


def _how_to_start(options: PipelineOptions) -> str:
    cloud = options.view_as(GoogleCloudOptions)
    flags = [f"--gcs-location {cloud.template_location}", f"--region {cloud.region}", f"--project {cloud.project}"]
    flags += [f"--service-account-email {cloud.service_account_email}"] if cloud.service_account_email else []
    return (
        f"staged the template {cloud.template_location}; nothing ran\n"
        f"start it: gcloud dataflow jobs run {cloud.job_name} {' '.join(flags)}\n"
        f"when that job is done, {_AGAIN}: it goes on from what the job wrote"
    )
