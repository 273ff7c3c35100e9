"""Run examples/tutorial.ipynb and write docs/tutorial.md from it: `python scripts/tutorial.py`, about three minutes.

The notebook keeps its outputs. `python scripts/tutorial.py --page` only writes the page again from the outputs that
are there. A cell's outputs are what it prints and the value of its last line, of which figures become pictures.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import re
import sys
from contextlib import chdir, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
NOTEBOOK, PAGE, IMAGES = ROOT / "examples/tutorial.ipynb", ROOT / "docs/tutorial.md", ROOT / "docs/images"
NOTE = """!!! note
    This page is `examples/tutorial.ipynb`, with the outputs of a run on two CPU cores. It needs the packages of
    `make setup`. Figures differ a little between processors.
"""


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """Run the cells in one namespace, in the current folder; return the notebook with their outputs."""
    space: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            cell["execution_count"], cell["outputs"] = count, run_cell("".join(cell["source"]), space, count)
    # The folder is a temporary one.
    whole: dict[str, Any] = json.loads(json.dumps(notebook, ensure_ascii=False).replace(f"{Path.cwd()}/", ""))
    return whole


def run_cell(source: str, space: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Run a cell as Jupyter does and return its outputs."""
    tree, last, name = ast.parse(source), None, f"tutorial, cell {number}"
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(tree, name, "exec"), space)
        value = eval(compile(last, name, "eval"), space) if last else None
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None:
        outputs.append(
            {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": shown(value)}
        )
    return outputs


def shown(value: Any) -> dict[str, Any]:
    """Return a value by media type."""
    if isinstance(value, Figure):
        picture = io.BytesIO()
        value.savefig(picture, format="png", dpi=110, bbox_inches="tight")
        return {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": ["a figure"]}
    return {"text/plain": repr(value).splitlines(keepends=True)}


def page(notebook: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """Return the page as Markdown, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\]\(\.\./docs/", "](", text))
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", [])})
            if "image/png" in data:
                name = f"tutorial-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![NDCG@10 of all rankers with 95% intervals](images/{name})")
            else:
                parts.append("```text\n" + "".join(data["text/plain"]).rstrip() + "\n```")
    parts.insert(1, NOTE.rstrip())
    return "\n\n".join(parts) + "\n", pictures


def main(page_only: bool) -> None:
    """Run the notebook unless `page_only`, and write the page."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    if not page_only:
        os.environ["PREFREC_QUIET"] = "1"
        with TemporaryDirectory() as folder, chdir(folder):
            notebook = executed(notebook)
        NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text, pictures = page(notebook)
    PAGE.write_text(text, encoding="utf-8")
    for name, picture in pictures.items():
        (IMAGES / name).write_bytes(picture)


if __name__ == "__main__":
    main("--page" in sys.argv)
