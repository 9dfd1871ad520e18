"""Run one Beam step: which runner, quietly, with progress, and with its counters brought back."""

from __future__ import annotations

import argparse
import logging
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from beam_pipelines import transforms
from beam_pipelines.progress import Progress

SMALL_SLICES = 6000  # fewer are converted in this process: starting worker processes costs about 4 s a step
LOCAL_RUNNERS = ("DirectRunner", "BundleBasedDirectRunner", "FnApiRunner", "SwitchingDirectRunner")


class ConversionFailed(Exception):
    """The work failed; the message is for the user."""


class WrongUse(Exception):
    """A flag or a place that cannot be used; the message is for the user."""


def beam_options(runner: str | None, flags: Sequence[str]) -> PipelineOptions:
    """Beam's options; raises `WrongUse` for a flag that neither this command nor Beam knows."""
    options = PipelineOptions([*flags, *([f"--runner={runner}"] if runner else [])])
    known: list[argparse.ArgumentParser] = []
    options.get_all_options(add_extra_args_fn=known.append)
    strangers = [flag for flag in known[0].parse_known_args(list(flags))[1] if flag.startswith("-")]
    if strangers or any(not flag.startswith("-") for flag in flags[:1]):
        raise WrongUse(f"unknown flag {(strangers or list(flags))[0]}; --help lists this command's own")
    return options


def run_step(
    build: Callable[[beam.Pipeline], Any],
    options: PipelineOptions,
    slices: int,
    tally: Counter[str],
    progress: Progress,
    error_log: Path,
) -> None:
    """Run the pipeline that `build` makes and add its counters to `tally`.

    `slices` decides between this process and many. Raises `ConversionFailed` with Beam's last words (all of
    them go to `error_log`), and `WrongUse` where the output could not be written.
    """
    pipeline = beam.Pipeline(runner=_runner(options, slices), options=options)
    build(pipeline)
    try:
        with progress:
            result = pipeline.run()
            result.wait_until_finish()
    except Exception as error:
        error_log.write_text(traceback.format_exc(), encoding="utf-8")
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise ConversionFailed(f"Beam stopped: {last[0]}; details are in {error_log}") from error
    failures = _add_counters(result, tally)
    if failures:
        raise WrongUse(f"{failures[0]}; mend that and run the same command again, it goes on where this one stopped")


def _runner(options: PipelineOptions, slices: int) -> Any:
    """FnApiRunner by name for local work (Beam's DirectRunner may fetch Prism), else the runner asked for."""
    name = options.view_as(StandardOptions).runner
    if name is not None and name.rsplit(".", 1)[-1] not in LOCAL_RUNNERS:
        return name
    direct = options.view_as(DirectOptions)
    chosen = direct.direct_num_workers != 1 or direct.direct_running_mode != "in_memory"
    if not chosen and name is None and slices > SMALL_SLICES:
        direct.direct_num_workers = 0
    if direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory":
        direct.direct_running_mode = "multi_processing"
    return FnApiRunner()


def _add_counters(result: Any, tally: Counter[str]) -> list[str]:
    """Add counters to `tally` by name (step names differ by runner); returns the failures' messages."""
    failures = []
    for counter in result.metrics().query()["counters"]:
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
