"""The checkpoints of one run: what goes into them, and whether the newest one belongs to this run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.shell.problems import WrongUse
from trainer.training import checkpoints, hparams
from trainer.training.state import State


@dataclasses.dataclass(frozen=True)
class Saver:
    """Writes and reads the checkpoints of a run.

    `model`: its variables. `update`: those of what changes it (`steps.Update.state`). `identity`: the settings and
    the fingerprint of the data set, which a run must not change on its way, and what else its kind adds, a word and a
    fingerprint each. Only the chief writes.
    """

    folder: Path
    model: Sequence[Any]
    update: Sequence[Any]
    identity: Mapping[str, Any]
    keep: int
    chief: bool

    def save(self, state: State) -> None:
        """A checkpoint of everything; older ones than the newest `keep` and the best go."""
        if self.chief:
            values = {"run": state.to_dict(), "identity": dict(self.identity)}
            self._write(checkpoints.step_name(state.step), [*self.model, *self.update], values)
            checkpoints.prune(self.folder, self.keep, [best_name(state), checkpoints.step_name(state.step)])

    def save_best(self, state: State) -> None:
        """The model's variables as they are now, under the name that `state` gives the best."""
        if self.chief:
            self._write(best_name(state), self.model, {"best": state.best, "identity": dict(self.identity)})

    def _write(self, name: str, variables: Sequence[Any], state: Mapping[str, Any]) -> None:
        checkpoints.save(self.folder, name, checkpoints.values(variables), checkpoints.names(variables), state)

    def resume(self, note: Callable[[str], None]) -> State | None:
        """The state of the newest whole checkpoint, put into the variables; None when there is none.

        Raises `WrongUse` when it belongs to a run with other settings or another data set.
        """
        found = checkpoints.newest(self.folder, note)
        if found is None:
            self._refuse_if_all_broken()
            return None
        self._refuse_difference(found.state["identity"])
        _refuse_earlier_averages(found)
        checkpoints.assign([*self.model, *self.update], found)
        state = State.from_dict(found.state["run"])
        if state.best and not (self.folder / f"{best_name(state)}.npz").is_file():
            note(f"the best weights so far, {best_name(state)}, are gone; the next epoch counts as the best")
            state.best = {}
        note(f"goes on from step {state.step:,} (epoch {state.epoch + 1}), saved in {found.path}")
        return state

    def _refuse_if_all_broken(self) -> None:
        broken = sorted(self.folder.glob("step-*.npz"))
        if broken:
            raise WrongUse(
                f"none of the {len(broken)} checkpoints in {self.folder} can be read; restore one, or delete them "
                "to begin again"
            )

    def _refuse_difference(self, old: Mapping[str, Any]) -> None:
        differs = hparams.differences(old["settings"], self.identity["settings"])
        if old["fingerprint"] != self.identity["fingerprint"]:
            differs.append(f"data set: {old['fingerprint'][:16]}, now {self.identity['fingerprint'][:16]}")
        more = self.identity.keys() - {"settings", "fingerprint"}
        differs += [f"{key}: {old.get(key, '-')[:16]}, now {self.identity[key][:16]}" for key in sorted(more)
                    if old.get(key) != self.identity[key]]  # fmt: skip
        if differs:
            raise WrongUse(
                f"{self.folder.parent} holds another run ({'; '.join(differs)}); "
                "give the same settings to go on, or another --job_dir"
            )

    def load_best(self, state: State) -> None:
        """Put the best weights into the model."""
        checkpoints.assign(self.model, checkpoints.load(self.folder / f"{best_name(state)}.npz"))


def _refuse_earlier_averages(found: checkpoints.Checkpoint) -> None:
    """Refuse averages that Keras kept: the first step never left them, and batch norm was not averaged with them."""
    if any(name.endswith("_average") for name in found.names):
        raise WrongUse(
            f"{found.path}: its averaged weights (ema) are of an earlier version, which averaged them wrongly; "
            "train anew in another --job_dir; what that run has exported can still be used"
        )


def best_name(state: State) -> str:
    """Name of the file with the best weights so far; without a validation split the newest are the best."""
    return f"best-{int(state.best.get('step', state.step)):09d}"
