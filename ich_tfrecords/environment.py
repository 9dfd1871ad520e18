"""What other projects of the user left in the environment, taken away before a library goes by it.

No result may depend on these variables; docs/faults.md has a row for each door. Those that decide about TensorFlow's
numbers are in `trainer.shell.tf_environment`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # which gRPC reads, for addresses of this machine as well
_FOREIGN = re.compile(
    r"(PANDAS|SKLEARN|JOBLIB)_\w+|SCIPY_ARRAY_API|NPY_PROMOTION_STATE"  # a word too many ends their import
    r"|MPLBACKEND"  # figures are written as files; one that is not there ends matplotlib's import
    r"|PYDICOM_FUTURE"  # the behaviour of its next version
    r"|NUMBA_\w+"  # whether it compiles, how, and which folder it takes compiled code from
    r"|API_(ENDPOINT|VERSION)_OVERRIDE"  # would send requests to buckets, with the user's login, to another host
    r"|BEAM_SERVICE_OVERRIDES"  # services of other languages
    r"|(LOGGING|CONTROL|STATUS)_API_SERVICE_DESCRIPTOR|PIPELINE_OPTIONS(_FILE)?"  # of the Beam worker around this
    r"|SEMI_PERSISTENT_DIRECTORY|RUNNER_CAPABILITIES|WORKER_ID"
)
_PASSED_OVER = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # by Python itself


def settle() -> None:
    """Take from this process, and from those it starts, what no command should go by; nothing is told.

    To be called before pandas, scikit-learn, matplotlib or Beam is imported.
    """
    apply(os.environ, changes(os.environ))
    if makes_errors(sys.warnoptions):
        warnings.resetwarnings()
        for category in _PASSED_OVER:
            warnings.simplefilter("ignore", category)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of every line of a matplotlibrc


def changes(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Variables with the value that they should have, None for those to be taken away."""
    found: dict[str, str | None] = {name: None for name in environ if _FOREIGN.fullmatch(name)}
    if makes_errors(environ.get("PYTHONWARNINGS", "").split(",")):
        found["PYTHONWARNINGS"] = None
    return found | without_proxy(environ, LOOPBACK)


def apply(environ: MutableMapping[str, str], wanted: Mapping[str, str | None]) -> None:
    """Make `environ` as `changes` says."""
    for name, value in wanted.items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value


def without_proxy(environ: Mapping[str, str], hosts: Iterable[str]) -> dict[str, str]:
    """The change by which gRPC reaches `hosts` directly; none where no proxy is named.

    A proxy knows neither this machine's loopback nor the workers beside it, and gRPC waits for it without end.
    """
    if not any(environ.get(name) for name in _PROXIES):
        return {}
    spared = environ.get("no_grpc_proxy") or environ.get("no_proxy") or ""  # gRPC reads the second without the first
    return {"no_grpc_proxy": ",".join(dict.fromkeys([*filter(None, spared.split(",")), *hosts]))}


def expanded(place: str | Path) -> Path:
    """`place` with the user's home for ~, which stays where the system knows none (such as of a container's user)."""
    try:
        return Path(place).expanduser()
    except RuntimeError:
        return Path(place)


def makes_errors(options: Sequence[str]) -> bool:
    """Whether one of Python's warning options, `action:message:...`, turns warnings into errors."""
    actions = (option.strip().partition(":")[0] for option in options)
    return any(action and "error".startswith(action) for action in actions)  # Python takes a beginning too
