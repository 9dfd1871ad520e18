"""The part of Dataflow's REST API that a launcher meets, on loopback: jobs that run in this process, or end as told.

    with DataflowService() as service:
        service.end_next("JOB_STATE_FAILED", "the disk is full")
        convert(..., "--runner", "DataflowRunner", *service.flags)
        service.jobs  # their names, in order

A job is done when the answer to its creation goes out: its graph is fetched from where it was staged, and run.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from typing import Any

import staged_worker
from apache_beam.portability.api import beam_runner_api_pb2

from ich_tfrecords.storage.bucket_path import any_path

_JOB = re.compile(
    r"/v1b3/projects/[^/]+/locations/[^/]+/jobs(?:/(?P<id>[^/?]+)(?:/(?P<part>messages|metrics))?)?(?:\?.*)?"
)
Answer = tuple[int, dict[str, Any]]


@dataclass
class _Job:
    facts: dict[str, Any]
    state: str
    message: str = ""
    metrics: list[dict[str, Any]] = field(default_factory=list)


class DataflowService:
    """Jobs by id; `jobs` are their names in the order they came, `cancelled` the ids that were asked to end."""

    def __init__(self) -> None:
        self.jobs: list[str] = []
        self.cancelled: list[str] = []
        self._made: dict[str, _Job] = {}
        self._next: tuple[str, str] | None = None
        self._refused: tuple[str, ...] = ()

    def __enter__(self) -> DataflowService:
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, content = service._answer(self.command, self.path, body)
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_PUT = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Silence."""

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def flags(self) -> tuple[str, ...]:
        """What sends a launcher here. Beam speaks HTTP to an endpoint with `localhost` in its name."""
        return ("--dataflow_endpoint", f"http://localhost:{self._http.server_port}")

    def end_next(self, state: str, message: str = "") -> None:
        """The next job does nothing and ends like this (JOB_STATE_RUNNING: not at all)."""
        self._next = state, message

    def refuse(self, *parts: str) -> None:
        """From now on 403 for questions about "metrics", "messages" or "job"."""
        self._refused = parts

    def _answer(self, method: str, path: str, body: bytes) -> Answer:
        match = _JOB.fullmatch(path)
        assert match, path
        name, part = match["id"], match["part"]
        if method == "POST":
            return self._create(json.loads(body))
        if method == "PUT":
            self.cancelled.append(name)
            self._made[name].state = "JOB_STATE_CANCELLED"
        if (part or "job") in self._refused:
            return 403, {"error": {"code": 403, "message": "refused", "status": "PERMISSION_DENIED"}}
        return 200, _told(self._made[name], part)

    def _create(self, facts: dict[str, Any]) -> Answer:
        self.jobs.append(facts["name"])
        job = _Job(facts | {"id": f"job-{len(self.jobs)}"}, "JOB_STATE_DONE")
        self._made[job.facts["id"]] = job
        if self._next:
            (job.state, job.message), self._next = self._next, None
        else:
            job.metrics = _run(facts["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"])
        # as a service would, it tells of the job while it runs
        return 200, job.facts | {"currentState": "JOB_STATE_RUNNING"}


def _told(job: _Job, part: str | None) -> dict[str, Any]:
    if part == "metrics":
        return {"metrics": job.metrics}
    if part == "messages":
        line = {"messageText": job.message, "messageImportance": "JOB_MESSAGE_ERROR", "time": "2026-01-01T00:00:00Z"}
        return {"jobMessages": [line] if job.message else []}
    return job.facts | {"currentState": job.state}


def _run(url: str) -> list[dict[str, Any]]:
    """Run a staged graph; its counters as Dataflow words them, each once as an estimate and once for good."""
    pipeline = beam_runner_api_pb2.Pipeline.FromString(any_path(url).read_bytes())
    found = []
    for counter in staged_worker.whole_graph(pipeline).metrics().query()["counters"]:
        context = {"namespace": counter.key.metric.namespace, "step": counter.key.step}
        for more in ({"tentative": "true"}, {}):
            name = {"origin": "user", "name": counter.key.metric.name, "context": context | more}
            found.append({"name": name, "scalar": counter.committed})
    return found
