"""scripts/catalogue_plot.py: the figure shows the rows of its table."""

import json
import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "catalogue_plot.py"


def test_every_row_of_the_table_is_a_point_of_both_panels():
    made = runpy.run_path(str(SCRIPT))
    rows = json.loads(made["RESULTS"].read_text(encoding="utf-8"))["tables"][0]["rows"]
    time, memory = made["figure"]().axes
    middle = [(x, y) for line in time.lines if line.get_linestyle() == "-" for x, y in line.get_xydata()]
    gigabytes = [(x, y) for line in memory.lines for x, y in line.get_xydata()]
    cells = [[float(cell.replace(",", "")) for cell in row[1:]] for row in rows]
    assert middle == [(items, p50) for items, p50, _, _ in cells]
    assert gigabytes == [(items, size) for items, _, _, size in cells]
