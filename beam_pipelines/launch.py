"""Run one Beam step: which runner, quietly, with progress, and with its counters brought back."""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import logging
import os
import shlex
import signal
import sys
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import psutil
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment
from apache_beam.utils import interactive_utils
from google.api_core.exceptions import GoogleAPICallError

from beam_pipelines import dataflow, transforms
from beam_pipelines.progress import Progress
from ich_tfrecords.command_line import WrongUse
from ich_tfrecords.storage.bucket_path import AnyPath

SMALL_SLICES = 6000  # fewer are converted in this process: starting worker processes costs about 4 s a step
LOCAL_RUNNERS = ("DirectRunner", "BundleBasedDirectRunner", "FnApiRunner", "SwitchingDirectRunner")

GOES_ON = "the same command goes on where this one stopped"


class ConversionFailed(Exception):
    """The work failed; the message is for the user."""


def beam_options(runner: str | None, flags: Sequence[str]) -> PipelineOptions:
    """Beam's options; raises `WrongUse` for a flag that neither this command nor Beam knows."""
    if _is_dask(runner):
        runner = _import_dask()
    known: list[argparse.ArgumentParser] = []
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            options = PipelineOptions([*flags, *([f"--runner={runner}"] if runner else [])])
            options.get_all_options(add_extra_args_fn=known.append)
            strangers = known[0].parse_known_args(list(flags))[1]
        except SystemExit as error:  # the usage has a hundred lines, and then one that tells
            raise WrongUse(f"{said.getvalue().strip().rpartition('error: ')[2]}, a flag of Beam") from error
    if strangers and strangers[0].startswith("-"):
        raise WrongUse(f"unknown flag {strangers[0]}; --help lists this command's own")
    if strangers:
        raise WrongUse(f"{strangers[0]} follows no flag; give --input once for each path, and quote a glob")
    if options.view_as(DirectOptions).direct_num_workers < 0:
        raise WrongUse("--direct_num_workers is negative; 0 takes all cores")
    if options.view_as(GoogleCloudOptions).template_location and not is_far(options):
        raise WrongUse("--template_location needs --runner DataflowRunner; no other runner writes templates")
    if not _is_local(options):
        _check_runner(options)
    return options


def _is_dask(runner: str | None) -> bool:
    return runner is not None and runner.rsplit(".", 1)[-1] == "DaskRunner"


def _import_dask() -> str:
    """The full name of Beam's DaskRunner, its flags made known. Raises `WrongUse` where Dask cannot be used."""
    try:
        from apache_beam.runners.dask import dask_runner
    except ValueError as error:  # Dask reads its own files when it is imported
        reason = " ".join(str(error).split())[:300]
        raise WrongUse(f"--runner DaskRunner: {reason}; mend that file, or set DASK_CONFIG to another") from error

    if not dask_runner.ddist:
        raise WrongUse("--runner DaskRunner needs Dask; install it with: pip install 'dask[distributed]'")
    return f"{dask_runner.__name__}.DaskRunner"


def _part_for_dask(options: PipelineOptions, elements: int) -> None:
    """Let Dask hand out the elements one by one, unless the flags say otherwise; each is a shard's worth of work."""
    from apache_beam.runners.dask.dask_runner import DaskOptions

    parts = options.view_as(DaskOptions)
    if parts.npartitions is None and parts.partition_size is None:
        parts.npartitions = elements


def _leave_dask(result: Any) -> None:
    """End the connection to Dask, and the cluster if it was started for this step; other runners have none."""
    client = getattr(result, "client", None)
    if client is not None:
        client.close()


def _is_local(options: PipelineOptions) -> bool:
    name = options.view_as(StandardOptions).runner
    return name is None or name.rsplit(".", 1)[-1] in LOCAL_RUNNERS


def _check_runner(options: PipelineOptions) -> None:
    """Refuse a runner that Beam does not know or whose flags are incomplete, before any work is done."""
    name = options.view_as(StandardOptions).runner
    try:
        if is_far(options):
            dataflow.check(options)
        beam.Pipeline(runner=name, options=options)
    except (ValueError, ImportError, AttributeError) as error:
        raise WrongUse(f"--runner {name}: {' '.join(str(error).split())[:300]}") from error


def is_far(options: PipelineOptions) -> bool:
    """Whether the workers run on machines that do not see this one's disks."""
    return "Dataflow" in (options.view_as(StandardOptions).runner or "")


def check_output(options: PipelineOptions, output: AnyPath) -> None:
    """Refuse an output that the runner's own files would lie in, and a place where they cannot. Raises `WrongUse`."""
    if is_far(options):
        try:
            dataflow.check_places(options, output)
        except ValueError as error:
            raise WrongUse(str(error)) from error


def step_options(options: PipelineOptions, step: str, output: AnyPath) -> PipelineOptions:
    """Options of one step alone: choosing the runner settles flags, and a job far away bears the step's name."""
    options = copy.deepcopy(options)
    if is_far(options):
        dataflow.name_step(options, step, output)
    return options


def run_step(
    build: Callable[[beam.Pipeline], Any],
    options: PipelineOptions,
    elements: int,
    slices: int,
    tally: Counter[str],
    progress: Progress,
    log: Path,
) -> None:
    """Run the pipeline that `build` makes and add its counters to `tally`.

    `elements`: how many the pipeline works on. `slices` decides between this process and many. What Beam logs goes
    to `log`. Raises `ConversionFailed` with Beam's last words, `WrongUse` where the output could not be written, and
    `dataflow.TemplateStaged` instead of running where a template was asked for.
    """
    if _is_dask(options.view_as(StandardOptions).runner):
        _part_for_dask(options, elements)
    with _as_in_a_terminal():
        pipeline = beam.Pipeline(runner=_runner(options, slices, log), options=options)
        build(pipeline)
    with _logging_to(log), _WorkerWatch() as watch:
        try:
            far = is_far(options)
            result = dataflow.run(pipeline, options, progress, log) if far else _run_near(pipeline, progress)
        except dataflow.TemplateStaged:
            raise
        except BaseException as error:
            watch.end_workers()
            if isinstance(error, _WorkerDied):
                raise ConversionFailed(f"{error} (out of memory?); {GOES_ON}; {log} tells more") from error
            if not isinstance(error, Exception):
                raise
            logging.error("Beam stopped", exc_info=error)
            last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise ConversionFailed(f"Beam stopped: {last[0]}; {log} tells more") from error
    failures = _add_counters(result, tally)
    if failures:
        raise WrongUse(f"{failures[0]}; mend that; {GOES_ON}")


@contextlib.contextmanager
def _as_in_a_terminal() -> Iterator[None]:
    """Keep Beam from naming steps after the cells of a notebook: for that it imports what fails beside pandas 3."""
    real = interactive_utils.is_in_ipython
    interactive_utils.is_in_ipython = lambda: False
    try:
        yield
    finally:
        interactive_utils.is_in_ipython = real


def _run_near(pipeline: beam.Pipeline, progress: Progress) -> Any:
    with progress:
        result = pipeline.run()
        result.wait_until_finish()
        _leave_dask(result)
    return result


@contextlib.contextmanager
def log_file(folder: AnyPath) -> Iterator[Path]:
    """Where Beam's log goes: into `folder`; for one in a bucket into a file of this machine that stays on failure."""
    if isinstance(folder, Path):
        yield folder / "beam.log"
        return
    descriptor, name = tempfile.mkstemp(prefix="ich-convert-", suffix=".log")
    os.close(descriptor)
    try:
        yield Path(name)
    except dataflow.TemplateStaged:
        Path(name).unlink()
        raise
    Path(name).unlink()


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Send what Beam and its workers log to a file instead of the screen."""
    root = logging.getLogger()
    usual, file = root.handlers[:], logging.FileHandler(path, delay=True, encoding="utf-8")
    root.handlers[:] = [file]
    try:
        yield
    finally:
        root.handlers[:] = usual
        file.close()


class _WorkerDied(Exception):
    """A worker process ended before its work did."""


class _WorkerWatch:
    """Ends a run whose worker process ended early, by raising `_WorkerDied` in the main thread.

    The local runner would wait for ever: the thread that started the process raises, and nobody listens. A
    signal is the one way to end that wait, so only a run in the main thread is watched. The other workers are
    ended first, here and on an interrupt, because the runner joins them on its way out.
    """

    def __init__(self) -> None:
        self._death = ""
        self._stopping = False

    def __enter__(self) -> _WorkerWatch:
        self._watching = threading.current_thread() is threading.main_thread()
        if self._watching:
            self._usual_hook, threading.excepthook = threading.excepthook, self._on_thread_error
            self._usual_death = signal.signal(signal.SIGUSR1, self._raise_death)
            self._usual_interrupt = signal.getsignal(signal.SIGINT)
            if self._usual_interrupt is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._raise_interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if self._watching:
            signal.signal(signal.SIGUSR1, self._usual_death)
            signal.signal(signal.SIGINT, self._usual_interrupt)
            if not self._stopping:
                threading.excepthook = self._usual_hook

    def _raise_death(self, *_: object) -> None:
        raise _WorkerDied(self._death)

    def _raise_interrupt(self, *_: object) -> None:
        self.end_workers()
        raise KeyboardInterrupt

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        logging.error("in a thread of Beam", exc_info=args.exc_value)
        if self._stopping or args.thread is None or args.thread.name != "run_worker":
            return
        self._death = str(args.exc_value)
        self.end_workers()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def end_workers(self) -> None:
        """Kill the worker processes of a run that stops, so that nothing writes or waits behind our back."""
        self._stopping = True
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def _runner(options: PipelineOptions, slices: int, log: Path) -> Any:
    """FnApiRunner by name for local work (Beam's DirectRunner may fetch Prism), else the runner asked for."""
    name = options.view_as(StandardOptions).runner
    if not _is_local(options):
        return name
    direct = options.view_as(DirectOptions)
    chosen = direct.direct_num_workers != 1 or direct.direct_running_mode != "in_memory"
    if not chosen and name is None and slices > SMALL_SLICES:
        direct.direct_num_workers = 0
    many = direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory"
    if not many and direct.direct_running_mode != "multi_processing":
        return FnApiRunner()
    # the environment that multi_processing stands for, with what the workers write to stderr sent to the log
    direct.direct_running_mode = "in_memory"
    command = f"{shlex.quote(sys.executable)} -m apache_beam.runners.worker.sdk_worker_main 2>> {shlex.quote(str(log))}"
    return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command))


def _add_counters(result: Any, tally: Counter[str]) -> list[str]:
    """Add counters to `tally` by name (step names differ by runner); returns the failures' messages.

    A runner without counters (Dask) adds nothing, nor does one that cannot be asked any more (Dataflow's API); what
    was left unwritten shows in the work directory.
    """
    failures = []
    try:
        found = result.metrics().query()["counters"]
    except (NotImplementedError, GoogleAPICallError):
        return []
    for counter in found:
        metric, value = counter.key.metric, counter.committed or counter.attempted or 0
        if metric.namespace == transforms.COUNTERS:
            tally[metric.name] += value
        elif metric.namespace == transforms.FAILURES and value:
            failures.append(metric.name)
    return sorted(failures)


def quiet_libraries() -> None:
    """Keep warnings that repeat for every file or worker off the screen."""
    warnings.filterwarnings("ignore", module="pydicom")
    warnings.filterwarnings("ignore", module="apache_beam")
    for name in ("apache_beam", "pydicom", "root"):
        logging.getLogger(name).setLevel(logging.ERROR)
