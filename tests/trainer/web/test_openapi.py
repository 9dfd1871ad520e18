"""The API as it is described is the API as it answers."""

from __future__ import annotations

import re

import jsonschema
import pytest
from web_server import OWN, slice_bytes

from trainer.web import openapi
from trainer.web.limits import Limits
from trainer.web.routes import Routes


def schema(name: str) -> dict:
    return {"$ref": f"#/components/schemas/{name}", "components": openapi.document()["components"]}


def test_each_route_of_the_api_is_described_and_no_other():
    described = {(one.method.upper(), one.path) for one in openapi.operations()}
    routes = [route for route in Routes(None, None, None, Limits(), "").all() if route.path.startswith("/api/")]
    there = {
        (method, re.sub(r"\{upload\}", "{id}", route.path.replace(":int", "")))
        for route in routes
        for method in route.methods - {"HEAD"}
    }
    assert described == there - {("GET", "/api/openapi.json")}


def test_every_schema_is_one_and_is_used():
    document = openapi.document()
    for one in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(one)
    used = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert used == set(document["components"]["schemas"])
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        for one in methods.values():
            inside = {named["name"] for named in one.get("parameters", []) if named["in"] == "path"}
            assert inside == set(re.findall(r"\{(\w+)\}", path))


@pytest.mark.parametrize("state", ["done", "failed", "waiting"])
def test_answers_fit_their_schemas(server, state):
    server.model.reads = state != "waiting"
    upload = server.send({"a": slice_bytes("1.2.3.4") if state == "done" else b"nothing", "b": b"x"})
    said = server.one(upload)
    assert said["state"] == state
    jsonschema.validate(said, schema("EntryWithSeries"))
    listed = server.client.get("/api/studies").json()
    jsonschema.validate(listed, schema("Entries"))
    jsonschema.validate(server.client.get("/api/studies/x").json(), schema("Error"))
    # nothing is said that is not described
    known = openapi.SCHEMAS["Entry"]["properties"].keys()
    assert listed["studies"][0].keys() == known
    assert said.keys() == known | {"series"}


def test_the_document_and_the_page_are_there(server):
    assert server.client.get("/api/openapi.json").json() == openapi.document()
    text = server.client.get("/api").text
    for one in openapi.operations():
        assert f"{one.method.upper()} {one.path}" in text


def test_errors_are_of_those_that_are_described(server):
    listed = {(one.method, one.path): one.errors for one in openapi.operations()}
    assert {status for errors in listed.values() for status in errors} == openapi.ERRORS.keys()
    assert server.client.post("/api/studies", content=b"", headers=OWN).status_code in listed["post", "/api/studies"]
