"""What a Dataflow worker does, in an environment that has the staged package: code and work come from the job graph.

    python -I staged_worker.py PIPELINE.pb element STEP ELEMENT   one element through the pickled DoFn of a step
    python -I staged_worker.py PIPELINE.pb graph                  the whole job graph, in this process

Prints the paths of the packages that were loaded, one a line. Imports none of them by name before the graph does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import EmbeddedPythonEnvironment

OURS = ("ich_tfrecords", "beam_pipelines")


def one_element(pipeline: beam_runner_api_pb2.Pipeline, step: str, element: object) -> None:
    [node] = [node for node in pipeline.components.transforms.values() if node.unique_name.endswith(f"/{step}")]
    payload = beam_runner_api_pb2.ParDoPayload.FromString(node.spec.payload)
    function = pickler.loads(payload.do_fn.payload)[0]
    function.setup()
    try:
        assert list(function.process(element)) == [element]
    finally:
        function.teardown()


def whole_graph(pipeline: beam_runner_api_pb2.Pipeline) -> Any:
    """Result of the graph as it is, but for the container that its steps would run in."""
    for environment in pipeline.components.environments.values():
        environment.CopyFrom(EmbeddedPythonEnvironment.default().to_runner_api(None))
    result = FnApiRunner().run_via_runner_api(pipeline, PipelineOptions([]))
    result.wait_until_finish()
    return result


def main(path: str, what: str, *more: str) -> None:
    pipeline = beam_runner_api_pb2.Pipeline.FromString(Path(path).read_bytes())
    if what == "graph":
        whole_graph(pipeline)
    else:
        one_element(pipeline, more[0], json.loads(more[1]))
    print(*(sys.modules[name].__file__ for name in OURS), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
