"""The training loop: epochs of steps, validation, checkpoints, early stopping, and going on where a run stopped."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from trainer.data.feed import Feed
from trainer.data.input_pipeline import EpochPlan
from trainer.results.joint import Odds
from trainer.shell.display import Display
from trainer.shell.problems import Stopped, TrainingFailed, WrongUse
from trainer.training import evaluation, optimizers, steps
from trainer.training.hparams import HParams, to_yaml
from trainer.training.metrics import Scores
from trainer.training.pace import Pace
from trainer.training.run_dir import RunDir
from trainer.training.saver import Saver
from trainer.training.scalars import Scalars
from trainer.training.state import State, has_value, means
from trainer.training.steps import Objective, Update
from trainer.training.strategy import Devices

NAMED_SLICES = 64


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run trains on, and validates on (or None), how an epoch is drawn, and the labels' names.

    `odds`: what lies between the logits of the model and natural log odds.
    """

    train: Feed
    validation: Feed | None
    plan: EpochPlan
    labels: tuple[str, ...]
    odds: Odds

    @property
    def slices_a_step(self) -> float:
        """Slices of a full batch, on average."""
        return self.plan.batch_size * self.train.slices_a_sample


@dataclasses.dataclass(frozen=True)
class Network:
    """The model, its pretrained part (or None), what a step changes it with, and what is minimised.

    `told`: lines about the weights that the model begins with.
    """

    model: keras.Model
    backbone: keras.Model | None
    update: Update
    objective: Objective
    told: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Doors:
    """Where a run reports, and `stopping`, which tells whether the process was asked to stop."""

    run_dir: RunDir
    scalars: Scalars
    display: Display
    stopping: Callable[[], bool]


class Loop:
    """One run from its newest checkpoint to its end."""

    def __init__(
        self, settings: HParams, data: Data, network: Network, devices: Devices, saver: Saver, doors: Doors
    ) -> None:
        self.settings, self.data, self.network = settings, data, network
        self.devices, self.saver, self.doors = devices, saver, doors
        self.state = State()
        self._pace = Pace(settings.steps_per_call)
        self._evaluate = steps.evaluation_step(network.model, network.objective, devices)
        self._train: dict[bool, Callable[..., Any]] = {}
        self._saved_at = self._logged_at = time.monotonic()

    def fit(self) -> State:
        """Train to the end of the last epoch, or to an early stop; returns the final state. Raises `Stopped`."""
        self._resume()
        while not self.ended():
            self._train_epoch()
            self._end_epoch()
            if self.ended() and self.state.epoch < self.settings.epochs:
                self.doors.display.note(
                    f"stops early: val_{self.settings.monitor} was not better for {self.state.waited} epochs (patience)"
                )
        return self.state

    def ended(self) -> bool:
        """Whether all epochs are done, or patience is at its end."""
        patience = self.settings.patience
        return self.state.epoch >= self.settings.epochs or bool(patience and self.state.waited >= patience)

    def _resume(self) -> None:
        state = self.saver.resume(self.doors.display.note)
        self._refuse_different_steps(state.step if state else 0)
        if self.devices.chief:  # not before: what another run left must not be overwritten
            self.doors.run_dir.write_config(to_yaml(self.settings))
            self.doors.scalars.settings(dataclasses.asdict(self.settings))
            self.doors.run_dir.cut_log(state.step if state else 0)
        self._refuse_other_folder()
        if state is not None:
            self.state = state
            if self.ended():
                self.doors.display.note(self._why_ended())
            if self.devices.chief:
                self.doors.run_dir.write_history(state.rows)

    def _why_ended(self) -> str:
        epochs = self.state.epoch
        if epochs < self.settings.epochs:
            return f"it stopped early after {epochs} epochs; raise patience to train on; the best is scored again"
        return f"all {epochs} epochs are done; the best is scored again"

    def _refuse_other_folder(self) -> None:
        """Refuse a worker that cannot see what the chief has written, now and not after hours of training."""
        if self.devices.workers > 1:
            steps.summed(self.devices, [0.0])  # the chief has written
            if self.doors.run_dir.read_config() != to_yaml(self.settings):
                raise WrongUse(
                    f"{self.doors.run_dir.config} is not what the chief has written; give all workers the same "
                    "settings and the same --job_dir, on storage that all of them see"
                )

    def _refuse_different_steps(self, step: int) -> None:
        """Workers that cannot see the same checkpoints would train different weights."""
        if self.devices.workers > 1 and steps.summed(self.devices, [step])[0] != step * self.devices.share.replicas:
            raise WrongUse(
                f"this worker goes on from step {step} and another one from another step; "
                f"give all workers the same --job_dir, on storage that all of them see ({self.saver.folder})"
            )

    # an epoch

    def _train_epoch(self) -> None:
        state, plan = self.state, dataclasses.replace(self.data.plan, epoch=self.state.epoch)
        self.doors.display.start(state.epoch, state.step_in_epoch)
        if state.step_in_epoch >= plan.steps:
            return  # it was stopped while it validated
        run = self._compiled(frozen=state.epoch < self.settings.freeze_epochs)
        batches = self.data.train.train_batches(plan, self.devices.share, state.step_in_epoch)
        iterator = steps.distribute(self.devices, batches)
        self._pace.begin()
        while state.step_in_epoch < plan.steps:
            stop = self._call(run, iterator, plan)
            due = stop or time.monotonic() - self._saved_at >= 60 * self.settings.checkpoint_minutes
            if due or state.step_in_epoch >= plan.steps:
                self._refuse_infinite_weights(plan)
            if due:
                self._save()
            if stop:
                raise Stopped

    def _call(self, run: Callable[..., Any], iterator: Any, plan: EpochPlan) -> bool:
        """Take some steps; returns whether any worker wants to stop."""
        votes = np.array([self.doors.stopping(), self._pace.seconds_a_step], np.float32)
        begin = time.monotonic()
        step = np.array(self.state.step, np.int32)
        count = np.array(self._pace.steps(plan.steps - self.state.step_in_epoch), np.int32)
        sums, votes = (value.numpy() for value in run(iterator, step, count, votes))
        self._pace.took(len(sums), time.monotonic() - begin, float(votes[1]) / self.devices.share.replicas)
        if not np.isfinite(sums[-1, 0]):
            raise TrainingFailed(self._infinite(f"the loss is {sums[-1, 0]} at", len(sums), plan))
        self.state.add(sums)
        self._report_call(sums)
        return bool(votes[0] > 0)

    def _compiled(self, frozen: bool) -> Callable[..., Any]:
        """The train step; `frozen`: the pretrained part keeps its weights and its batch-norm statistics."""
        network = self.network
        if network.backbone is not None:
            network.backbone.trainable = not frozen  # read while the step is traced, at its first call
        if frozen not in self._train:
            self._train[frozen] = steps.train_steps(
                network.model, network.update, self._trained(frozen), network.objective, self.devices,
                self.settings.jit_compile,
            )  # fmt: skip
        return self._train[frozen]

    def _trained(self, frozen: bool) -> list[Any]:
        every = optimizers.inner(self.network.update.optimizer)._trainable_variables
        kept = (
            {id(variable) for variable in self.network.backbone.variables} if frozen and self.network.backbone else ()
        )
        return [variable for variable in every if id(variable) not in kept]

    def learning_rate(self, step: int) -> float:
        """Of a step, counted from 1; to the seven digits that float32 has."""
        return float(f"{float(self.network.update.rate(max(0, step - 1))):.7g}")

    def _refuse_infinite_weights(self, plan: EpochPlan) -> None:
        """A loss is of the weights before its step; these would be saved, and no step could come back from them."""
        for variable in self.network.model.variables:
            if variable.dtype.startswith("float") and not np.isfinite(variable.value.numpy()).all():
                raise TrainingFailed(self._infinite(f"{variable.path} is not finite after", 0, plan))

    def _infinite(self, what: str, steps_ahead: int, plan: EpochPlan) -> str:
        """What is wrong at the step `steps_ahead` of those counted so far, and all that helps to look into it."""
        in_epoch, step = self.state.step_in_epoch + steps_ahead - 1, self.state.step + steps_ahead
        ids = self.data.train.slices_of_step(plan, self.devices.share, in_epoch)
        named = ", ".join(ids[:NAMED_SLICES])
        more = f" and {len(ids) - NAMED_SLICES} more" if len(ids) > NAMED_SLICES else ""
        return (
            f"{what} step {step} (epoch {plan.epoch + 1}, learning rate "
            f"{self.learning_rate(step):g}); the last good checkpoint stays in {self.saver.folder}; lower "
            f"learning_rate or set clip_norm, with a new job_dir; slices of that batch: {named}{more}"
        )

    def _end_epoch(self) -> None:
        if self.devices.workers > 1:
            self._save()  # several workers cannot stop while they validate, so that this may be the last moment
        row: dict[str, float] = {"epoch": self.state.epoch + 1, "step": self.state.step}
        row |= {"learning_rate": self.learning_rate(self.state.step), **means(self.state.sums)}
        try:
            with self.network.update.shown():
                if self.data.validation is not None:
                    found = self.evaluate(self.data.validation)
                    row |= {f"val_{name}": value for name, value in self.result(found).items()}
                best = self.state.close_epoch(row, self.settings.monitor)
                if best or not self.state.best:
                    self.saver.save_best(self.state)
        except Stopped:
            self._save()
            raise
        self._save()
        self._report_epoch(row)
        if self.data.validation is not None and not has_value(row, self.settings.monitor):
            self.doors.display.note(
                f"val_{self.settings.monitor} has no value in epoch {self.state.epoch}, which counts neither as the "
                "best nor for patience"
            )

    def _save(self) -> None:
        self.saver.save(self.state)
        self._saved_at = time.monotonic()

    # scores

    def evaluate(self, feed: Feed) -> Scores:
        """Scores of a split with the model as it is. Raises `Stopped`."""
        size, share = self.settings.eval_batch_size, self.devices.share
        batches, count = feed.evaluation_batches(size, share), feed.evaluation_steps(size, share)
        return evaluation.scores(self._evaluate, steps.distribute(self.devices, batches), count, self.evaluated)

    def result(self, scores: Scores) -> dict[str, float]:
        """Metrics of scores, with what loss and sampling do to the odds undone; the log loss is the competition's."""
        return scores.result(self.data.odds)

    def evaluated(self, done: int, total: int) -> None:
        """Show how far it is. Raises `Stopped` where the process was asked to stop."""
        self.doors.display.evaluating(done, total)
        if self.doors.stopping() and self.devices.workers == 1:
            raise Stopped  # several workers stop together, after the first call of the next epoch

    # reports

    def _report_call(self, sums: npt.NDArray[np.float64]) -> None:
        loss = means(sums.sum(0))["loss"]
        self.doors.display.update(self.state.epoch, self.state.step_in_epoch, loss)
        if not self.devices.chief:
            return
        seconds = self._pace.seconds_a_step
        entry = {"step": self.state.step, "epoch": self.state.epoch + 1, "loss": loss}
        entry |= {"learning_rate": self.learning_rate(self.state.step)}
        entry |= {"loss_scale": optimizers.loss_scale(self.network.update.optimizer)}
        entry |= {"images_per_s": self.data.slices_a_step / seconds} if seconds else {}
        self._log(entry)
        self.doors.scalars.write(self.state.step, {f"step/{key}": entry[key] for key in entry if key not in _PLACE})

    def _report_epoch(self, row: Mapping[str, float]) -> None:
        self.doors.display.epoch_done(row)
        if self.devices.chief:
            self.doors.run_dir.write_history(self.state.rows)
            self._log(row)
            self.doors.scalars.write(self.state.step, {key: row[key] for key in row if key not in _PLACE})

    def _log(self, entry: Mapping[str, float]) -> None:
        """A line of metrics.jsonl, with the seconds since the line before: their sum is the time of the run."""
        now = time.monotonic()
        self.doors.run_dir.log({**entry, "seconds": now - self._logged_at})
        self._logged_at = now


_PLACE = ("epoch", "step")
