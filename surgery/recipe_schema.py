"""The recipe format as a JSON Schema, from which editors complete and check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgery.graded import VALUE, AmountRule, Rule, one_or_more
from surgery.parameters import NAME
from surgery.quantity import QUANTITY_SCHEMAS
from surgery.recipe import Recipe

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PARAMETER = {
    "type": "string",
    "pattern": rf"^\${NAME.pattern}$",
    "description": "the value of a parameter that the recipe declares",
}
_BY_REFERENCE = {"$ref": "#/$defs/Parameter"}
_INSIDE = ("items", "additionalProperties")


def schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a recipe as it is written, with `$name` wherever a parameter may stand.

    What depends on other parts of the recipe is beyond it: that roles and parameters are declared and used.
    """
    rules = _rules()
    made = _referring(Recipe.model_json_schema(by_alias=True), rules)
    definitions = made.pop("$defs") | rules
    for name, definition in definitions.items():
        definitions[name] = {**definition, "properties": _below(definition.get("properties", {}))}
    definitions["Parameter"] = _PARAMETER
    parameters = made["properties"]["parameters"]
    parameters["propertyNames"] = {"pattern": f"^{NAME.pattern}$"}
    properties = made["properties"]
    del properties["steps"]["items"]["discriminator"]  # of OpenAPI; the constants of `op` say the same
    del properties["steps"]["default"]
    made["anyOf"] = [{"required": ["slices"]}, {"required": ["steps"], "properties": {"steps": {"minItems": 1}}}]
    slices = properties["slices"]
    slices["anyOf"].remove({"type": "null"})
    properties["slices"] = _below({"slices": slices})["slices"]
    description = "A recipe of `surgery`: what to do with the weights of which checkpoints."
    return {"$schema": _DIALECT, **made, "title": "Recipe", "description": description, "$defs": definitions}


def _rules() -> dict[str, dict[str, Any]]:
    """The rules as they are written, where one text may stand for a list of one."""
    found = {}
    for rule, one in ((Rule, [{"type": "number"}]), (AmountRule, QUANTITY_SCHEMAS)):
        made = rule.model_json_schema()
        properties = made["properties"]
        for key in ("tensors", "exclude"):
            text, several = {"type": "string"}, {"type": "array", "items": properties[key].pop("items")}
            del properties[key]["type"]
            properties[key]["anyOf"] = [text, several]
        told = "the value; several are interpolated over the layers"
        properties[VALUE] = {"description": told, "anyOf": one_or_more(one)}
        found[rule.__name__] = {**made, "properties": properties}
    return found


def _referring(node: Any, rules: Mapping[str, Any]) -> Any:
    """The schema with a reference wherever it names a rule; pydantic takes none to what it does not define itself."""
    if isinstance(node, list):
        return [_referring(item, rules) for item in node]
    if not isinstance(node, dict):
        return node
    if set(node) == {"title", "type"} and node["title"] in rules:
        return {"$ref": f"#/$defs/{node['title']}"}
    return {key: _referring(value, rules) for key, value in node.items()}


def _below(properties: dict[str, Any]) -> dict[str, Any]:
    return {name: value if name == "op" else _or_parameter(value) for name, value in properties.items()}


def _or_parameter(schema: Any) -> Any:
    """The schema, or a reference to a parameter; likewise for the items and values inside."""
    if not isinstance(schema, dict):
        return schema
    if "anyOf" in schema:
        return {**schema, "anyOf": [*_inside(schema)["anyOf"], _BY_REFERENCE]}
    outer = {key: value for key, value in schema.items() if key in ("title", "description", "default")}
    inner = {key: value for key, value in schema.items() if key not in outer}
    return {**outer, "anyOf": [_inside(inner), _BY_REFERENCE]}


def _inside(schema: dict[str, Any]) -> dict[str, Any]:
    inner = {key: _or_parameter(value) if key in _INSIDE else value for key, value in schema.items()}
    return {**inner, "anyOf": [_inside(branch) for branch in schema["anyOf"]]} if "anyOf" in schema else inner
