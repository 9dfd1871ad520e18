"""The API described for programs: an OpenAPI 3.1 document, and the same operations for the page /api."""

from __future__ import annotations

from typing import Any, NamedTuple

from ich_tfrecords import NOT_A_DEVICE, __version__
from trainer.trust.scope import NO, UNKNOWN, YES
from trainer.web.limits import MOST_REJECTS
from trainer.worklist.spool import STATES

Json = dict[str, Any]

ERRORS = {
    400: "the upload is none, is damaged, or holds no slice",
    401: "the token is missing or wrong",
    403: "the Host, Origin or header X-ICH is not as it must be",
    404: "there is none, or not yet",
    408: "the body comes too slowly",
    409: "this study arrives or is being read",
    413: "larger than this server takes",
    429: "too much waits already; Retry-After says when to ask again",
    503: "no room or no model at the moment; Retry-After says when to ask again",
}
TEXT, WHOLE, NUMBER, FLAG = ({"type": name} for name in ("string", "integer", "number", "boolean"))


class Operation(NamedTuple):
    """One method of one path. `gives`: status and kind of the answer; `errors`: statuses of `ERRORS`."""

    method: str
    path: str
    says: str
    gives: int
    kind: str
    schema: Json | None
    errors: tuple[int, ...]
    details: str = ""


def _list(of: Json) -> Json:
    return {"type": "array", "items": of}


def _object(**fields: Json) -> Json:
    return {"type": "object", "properties": fields, "required": list(fields)}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


TIME = {"type": "string", "format": "date-time"}
PROBABILITIES = {**_list({**NUMBER, "minimum": 0, "maximum": 1}), "description": "in the order of `labels`"}
SCHEMAS: Json = {
    "Error": _object(error={**TEXT, "description": "one line"}),
    "Taken": _object(id=TEXT, url=TEXT),
    "Window": _object(name=TEXT, level=NUMBER, width=NUMBER),
    "Progress": _object(stage=TEXT, done=WHOLE, files=WHOLE),
    "Study": _object(
        study_uid=TEXT,
        rank={**WHOLE, "description": "1 for the most urgent of this upload"},
        probability={**NUMBER, "description": "of any hemorrhage"},
        probabilities=PROBABILITIES,
        partial={**FLAG, "description": "some of its files gave no probability"},
        slices=WHOLE,
        in_scope={**TEXT, "enum": [YES, NO, UNKNOWN], "description": "whether it looks like what the model knows"},
        scope_reason={**TEXT, "description": "what of it does not, in words"},
    ),
    "Reject": _object(file=TEXT, reason=TEXT),
    "Slice": _object(
        n={**WHOLE, "description": "its number in the upload, for /slices/{n}"},
        file=TEXT,
        z_mm=_or_null(NUMBER),
        rows=_or_null(WHOLE),
        columns=_or_null(WHOLE),
        probabilities=PROBABILITIES,
    ),
    "Series": _object(study_uid=TEXT, series_uid=TEXT, slices={**_list(_ref("Slice")), "description": "feet to head"}),
    "Entry": _object(
        id=TEXT,
        url=TEXT,
        name={**TEXT, "description": "what the upload was called"},
        state={**TEXT, "enum": list(STATES)},
        error=_or_null(TEXT),
        progress=_or_null(_ref("Progress")),
        received=TIME,
        expires=TIME,
        labels=_list(TEXT),
        not_a_device=TEXT,
        windows=_list(_ref("Window")),
        studies={**_list(_ref("Study")), "description": "most urgent first"},
        rejects={**_list(_ref("Reject")), "description": f"the first {MOST_REJECTS} files without a prediction"},
        rejected={**WHOLE, "description": "how many files gave no prediction"},
    ),
    "EntryWithSeries": {"allOf": [_ref("Entry"), _object(series=_list(_ref("Series")))]},
    "Entries": _object(studies=_list(_ref("Entry")), most_upload_bytes=WHOLE),
}


def operations() -> list[Operation]:
    """Everything a program can ask for."""
    study, one = "/api/studies/{id}", "/api/studies/{id}/slices/{n}"
    octets = {"type": "string", "format": "binary"}
    return [
        Operation(
            "post", "/api/studies", "Send files: DICOM, NIfTI or zip archives. They wait for the model.",
            201, "application/json", _ref("Taken"), (400, 401, 403, 408, 413, 429, 503),
            "takes multipart/form-data, each in a field called files, or one application/zip; it needs X-ICH: 1",
        ),
        Operation(
            "get", "/api/studies", "All uploads: most urgent first, then those under way, then those that failed.",
            200, "application/json", _ref("Entries"), (401, 403),
        ),
        Operation(
            "get", study, "One upload: its state, and its studies and series once it is done.",
            200, "application/json", _ref("EntryWithSeries"), (401, 403, 404),
        ),
        Operation(
            "delete", study, "Delete an upload and its results.",
            204, "", None, (401, 403, 404, 409), "needs the header X-ICH: 1",
        ),
        Operation(
            "get", one, "A slice: HU as int16, little-endian, row by row.",
            200, "application/octet-stream", octets, (401, 403, 404),
        ),
        Operation(
            "get", f"{one}/map", "Where the model looks at a slice: uint8, row by row.",
            200, "application/octet-stream", octets, (401, 403, 404, 429, 503),
            "shows what speaks for the leading label, which the header X-ICH-Label names: 0 nothing, 255 the most",
        ),
        Operation(
            "get", f"{study}/triage.html", "The page that predict writes of an upload.",
            200, "text/html", TEXT, (401, 403, 404),
        ),
    ]  # fmt: skip


def document() -> Json:
    """The OpenAPI document."""
    paths: Json = {}
    for one in operations():
        paths.setdefault(one.path, {})[one.method] = _described(one)
    schemes = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "trainer.serve", "version": __version__, "description": NOT_A_DEVICE},
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": schemes},
        "security": [{}, {"token": []}],
    }


def _described(one: Operation) -> Json:
    content = {"content": {one.kind: {"schema": one.schema}}} if one.kind else {}
    error = {"content": {"application/json": {"schema": _ref("Error")}}}
    answers = {str(one.gives): {"description": "done", **content}}
    answers |= {str(status): {"description": ERRORS[status], **error} for status in one.errors}
    found: Json = {"summary": one.says, "description": one.details, "responses": answers}
    if names := [name for name in ("id", "n") if f"{{{name}}}" in one.path]:
        kinds = {"id": {**TEXT, "pattern": "^[0-9a-f]{32}$"}, "n": {**WHOLE, "minimum": 0}}
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": kinds[name]} for name in names]
    if one.method != "get":
        own = {"name": "X-ICH", "in": "header", "required": True, "schema": {**TEXT, "const": "1"}}
        found["parameters"] = [*found.get("parameters", []), own]
    if one.method == "post":
        binary = {"type": "string", "format": "binary"}
        found["requestBody"] = {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _object(files=_list(binary))},
                "application/zip": {"schema": binary},
            },
        }
    return found
