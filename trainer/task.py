"""Train a classifier on a converted data set.

    python -m trainer.task --model densenet121 --data_dir data/rsna_ich

The same command goes on where a run stopped.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ich_tfrecords import environment
from ich_tfrecords.storage.bucket_path import local_path
from trainer.data.joined import open_datasets
from trainer.shell import command, quiet, setting_values, vertex
from trainer.shell.command import Parser
from trainer.shell.problems import Stopped
from trainer.training import hparams
from trainer.training.hparams import HParams

GOES_ON = "what was saved stays, the same command goes on"
FLAGS = {  # flag -> what it does; each is a setting, and so may stand in a config as well
    "epochs": ("N", "times through the data, each with a validation and a checkpoint after it"),
    "steps_per_epoch": ("N", "of each epoch; 0: as many as the train split has slices for"),
    "batch_size": ("N", "slices of one step, over all devices together"),
    "sampling": ("POLICY", "how often each stratum is shown: natural (each slice once an epoch), balanced or sqrt"),
    "slice_run": ("RUN", "of --model series: the run of the slice model whose vectors it sees"),
    "weights": ("WEIGHTS", "what the model starts from: imagenet, none or a file"),
    "learning_rate": ("RATE", "of the optimizer, before schedule and warm-up"),
    "folds": (
        "N",
        "cross-validation: a run trains on N - 1 folds of the train and validation patients; 0: none",
    ),
    "fold": ("K", "the fold, 0 to N - 1, whose patients validate"),
    "seed": ("N", "of initial weights, order, augmentation and dropout"),
    "precision": ("KIND", f"{', '.join(hparams.PRECISIONS)}; auto: what the device is good at"),
    "strategy": ("KIND", f"{', '.join(hparams.STRATEGIES)}; auto: TF_CONFIG, TPU_NAME and the number of GPUs decide"),
}
_OTHERS = {hparams.TRANSFER: "others"}  # the models that share a config
EPILOG = """\
settings: configs/<model>.yaml, or configs/transfer.yaml of the models that have
none, then --config, then --set, then the flags above; the later one wins. The
outcome is printed, and kept as config.yaml of the run.
configs/cnn.yaml says what each setting does.
"""
EXIT_CODES = """\
exit codes:
    0  done
    1  the work failed on the way; what was saved stays
    2  wrong use or input; nothing was done
  130  interrupted (Ctrl-C) and saved; a second Ctrl-C ends it at once
  143  terminated (SIGTERM) and saved
Every failure is one line. After 1, 130 and 143 the same command goes on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong use, 130 and 143 stopped by a signal."""
    return command.run("train", lambda: _main(argv), GOES_ON)


def _main(argv: Sequence[str] | None) -> int:
    args = command.parse(_parser(), argv, _setting_hint)
    return _train(hparams.resolve(args.model, args.config, _sets(args)), args)


def _setting_hint(flag: str) -> str:
    """What to write instead of an unknown flag that is a setting without a flag of its own; else nothing."""
    setting = flag.lstrip("-").replace("-", "_")
    known = setting in HParams.__dataclass_fields__ and setting not in FLAGS
    return f"write --set {setting}=VALUE" if known else ""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m trainer.task",
        usage="%(prog)s --model MODEL [--data_dir DIR] [flags]",
        description="Train a classifier on a converted data set.\nThe same command goes on where a run stopped.",
        epilog=EPILOG,
        exit_codes=EXIT_CODES,
    )
    others = [model for model in hparams.MODELS if model not in hparams.OWN_CONFIG]
    what = parser.add_argument_group("what to train")
    what.add_argument(
        "--model", metavar="MODEL",
        help=f"{', '.join(hparams.OWN_CONFIG)}, or one of {', '.join(others)}; may be left out when --config names it",
    )  # fmt: skip
    what.add_argument(
        "--config", metavar="NAME|YAML",
        help=f"settings laid over the model's own: {', '.join(hparams.config_names())}, or a file",
    )  # fmt: skip
    what.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="any setting, such as --set clip_norm=1 or --set architecture.dropout=0.2; repeatable",
    )  # fmt: skip
    where = parser.add_argument_group("where")
    command.add_data_dirs(where)
    where.add_argument(
        "--cache_dir", type=local_path, metavar="DIR",
        help="copy the shards of a gs:// data set here first, each checked (default: read them from the bucket)",
    )  # fmt: skip
    where.add_argument(
        "--job_dir", metavar="DIR",
        help="folder of the run (default: as Vertex AI asks, elsewhere runs/<model>, with folds runs/<model>-fold<K>)",
    )  # fmt: skip
    how = parser.add_argument_group("how")
    configs = {model: hparams.defaults(model) for model in (*hparams.OWN_CONFIG, hparams.TRANSFER)}
    for name, (metavar, text) in FLAGS.items():
        how.add_argument(f"--{name}", metavar=metavar, help=f"{text}{_defaults(name, configs)}")
    return parser


def _defaults(name: str, configs: Mapping[str, Mapping[str, Any]]) -> str:
    """` (default: 32)`, or what each model's config says where they differ."""
    found = {model: settings[name] for model, settings in configs.items()}
    if not any(map(str, found.values())):
        return ""
    if len(set(map(str, found.values()))) == 1:
        return f" (default: {found['cnn']})"
    return f" (default: {', '.join(f'{_OTHERS.get(model, model)} {value}' for model, value in found.items())})"


def _sets(args: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    return dict(map(setting_values.parse_set, [*args.set, *(f"{name}={value}" for name, value in given.items())]))


def _train(settings: HParams, args: argparse.Namespace) -> int:
    note = Notes(vertex.cluster(os.environ).is_chief)
    data = open_datasets(
        command.data_places(args.data_dir), args.cache_dir, note
    )  # before TensorFlow, which takes seconds to import
    environment.apply(os.environ, environment.without_proxy(os.environ, vertex.hosts(os.environ)))
    quiet.import_tensorflow()
    from trainer.series.assembly import OfSeries
    from trainer.series.second_stage import OfBoth
    from trainer.training import session

    signals = Signals()
    of_series = OfBoth if settings.end_to_end else OfSeries
    kind = of_series() if settings.model == hparams.SERIES else session.OfSlices()
    try:
        session.run(settings, data, args.job_dir, os.environ, signals, note, kind)
    except Stopped as stopped:
        number = signals.received or signal.SIGTERM  # or another worker was told
        words = f"stopped by {signal.Signals(number).name}; {str(stopped) or 'saved'}; the same command goes on"
        return command.complain("train", words, 128 + number)
    return 0


class Notes:
    """Prints lines for the user; silent on workers that are not the chief."""

    def __init__(self, chief: bool) -> None:
        self._chief = chief

    def __call__(self, text: str) -> None:
        """Show a line."""
        if self._chief:
            print(text, flush=True)


class Signals:
    """Remembers SIGTERM and the first SIGINT, so that the run ends at a step; a second SIGINT ends it at once.

    Before there are steps, `listen_closely` makes each of them end the run at once.
    """

    def __init__(self) -> None:
        self.received = 0

    def listen(self) -> None:
        """Take the signals; to be called after TensorFlow has started several workers, for it takes SIGTERM then."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def listen_closely(self) -> None:
        """Take the signals, and raise `Stopped` wherever the program is when one comes."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._raise)

    def _raise(self, number: int, _: object) -> None:
        self.received = number
        raise Stopped("nothing was done yet")

    def _remember(self, number: int, _: object) -> None:
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __call__(self) -> bool:
        """Whether the run should stop."""
        return bool(self.received)


if __name__ == "__main__":
    sys.exit(main())
