"""Write docs/reference/http.md from the server's OpenAPI schema: `python scripts/http_page.py`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from prefrec_server.app import Settings, create_app

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "http.md"
HEAD = """# HTTP API

Requests and answers of `prefrec serve`, from its `/openapi.json`. [Serve](../serving.md) has examples and the
meaning of scores. With `PREFREC_API_KEY` set, `/v1` and `/metrics` need the header `Authorization: Bearer KEY`.
"""


def page() -> str:
    """Return the page as Markdown."""
    engine = SimpleNamespace(batcher=SimpleNamespace(waiting=0, alive=True))  # the schema needs no model
    schema = create_app(cast(Any, engine), Settings("run", "model")).openapi()
    models = schema["components"]["schemas"]
    parts = [HEAD]
    for path, methods in schema["paths"].items():
        parts += [route(f"{method.upper()} {path}", spec, models) for method, spec in methods.items()]
    used = [name for name in models if not name.startswith(("HTTPValidationError", "ValidationError"))]
    parts += ["## Objects\n", *(f"### {name}\n\n{fields(models[name])}" for name in used)]
    return "\n".join(parts)


def route(name: str, spec: dict[str, Any], models: dict[str, Any]) -> str:
    """Return the section of a route."""
    parts = [f"## {name}", spec.get("description", spec.get("summary", ""))]
    if asked := spec.get("parameters"):
        rows = {p["name"]: p["schema"] | {"description": p.get("description", "")} for p in asked}
        parts.append(_table(rows, [p["name"] for p in asked if p.get("required")]))
    if body := spec.get("requestBody"):
        parts.append(f"Body: {_type(body['content']['application/json']['schema'])}.")
    answers = {code: _answer(answer) for code, answer in spec["responses"].items()}
    parts.append(f"Answer: {answers.get('200', '')}.")
    if errors := [code for code in answers if code >= "400"]:
        parts.append(f"Errors ([ProblemAnswer](#problemanswer)): {', '.join(errors)}.")
    return "\n\n".join(parts) + "\n"


def fields(model: dict[str, Any]) -> str:
    """Return what an object is, and its fields."""
    said = " ".join(model.get("description", "").split())
    table = _table(model.get("properties", {}), model.get("required", []))
    return "\n\n".join(part for part in (said, table) if part) + "\n"


def _answer(answer: dict[str, Any]) -> str:
    content = answer.get("content", {})
    return ", ".join(_type(spec.get("schema", {})) for spec in content.values()) or "text"


def _table(rows: dict[str, Any], required: list[str]) -> str:
    if not rows:
        return ""
    lines = ["| field | type | default | |", "|---|---|---|---|"]
    for name, schema in rows.items():
        default = "required" if name in required else f"`{schema['default']}`" if schema.get("default") else "–"
        said = " ".join(schema.get("description", "").split()).replace("|", "\\|")
        lines.append(f"| `{name}` | {_type(schema)} | {default} | {said} |")
    return "\n".join(lines)


def _type(schema: dict[str, Any]) -> str:
    """Return a type, for people."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return " or ".join(dict.fromkeys(_type(s) for s in schema[word] if s.get("type") != "null"))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    low, high = schema.get("minimum", schema.get("minLength")), schema.get("maximum", schema.get("maxLength"))
    bounds = [f"≥ {low}"] * (low is not None) + [f"≤ {high}"] * (high is not None)
    return " ".join([str(schema.get("const", schema.get("type", "any"))), ", ".join(bounds)]).strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
