"""How many steps the next call takes, so that a run works in long calls and still listens."""

from __future__ import annotations

CALL_S = 1.0
MOST_STEPS = 200


class Pace:
    """Steps a call: the fixed number asked for, or about a second's worth, found from the calls so far.

    Workers must take the same number: each tells how long a step took it, and all follow the mean.
    """

    def __init__(self, fixed: int) -> None:
        self._fixed = fixed
        self._next = fixed or 1
        self._calls = 0
        self.seconds_a_step = 0.0  # of this worker's last call, the first one (compilation) left out

    def begin(self) -> None:
        """A new epoch: its first call fills the buffers of the reader, or compiles, and says nothing about speed."""
        self._calls = 0

    def steps(self, left: int) -> int:
        """Steps of the next call, of `left` in the epoch."""
        return min(self._next, left)

    def took(self, steps: int, seconds: float, mean_seconds_a_step: float) -> None:
        """Tell how long a call took here, and what all workers had told before it, on average."""
        self._calls += 1
        if self._calls > 1:
            self.seconds_a_step = seconds / steps
        if not self._fixed and mean_seconds_a_step > 0:
            wanted = CALL_S / mean_seconds_a_step
            self._next = int(min(MOST_STEPS, 4 * self._next, max(1.0, wanted)))
