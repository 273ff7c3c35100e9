"""YAML is read as PyYAML reads it, but for aliases without end, keys given twice, and numbers in base 8 or 60."""

import shutil
from typing import get_args

import pytest
import yaml

from prefrec.presets import PresetName, preset_text
from prefrec.report import write_report
from prefrec.runs.contents import read_run
from prefrec.strict_yaml import MOST_NODES, TrapError, read_yaml
from reliability.corpus.recipes import BOMB
from reliability.limits import within


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1",
        "a: [0, 7, -3, +4, 0x1F, 1_000, 1.5, 1e3, 1.0e-3, .5, .inf, '010', '1:30']",
        "{a: 08, b: 2020-01-02, c: yes, d: ~, 1: x, '1': y}",
        "base: &b {rows: 3, epochs: 2}\nalign: [{<<: *b, rows: 4}, {<<: *b}, *b]",
        "a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, x: 3}",
        *map(preset_text, get_args(PresetName)),
    ],
)
def test_other_texts_are_read_as_pyyaml_reads_them(text):
    assert read_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n  b: 1\n  c: 2\n  b: 3", "line 4: the key 'b' occurs twice"),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "line 2: the key '<<' occurs twice"),
        ("[1, -017]", "line 1: -017 is a number in base 8"),
        ("- 1:30\n", "line 1: 1:30 is a number in base 60"),
        ("- 1:30.5\n", "base 60"),
        ("\n&a {b: {c: *a}}", r"line 2: the alias \*a lies inside its own anchor"),
        (BOMB, "line 6: more than 100,000 values"),
        ("a: &a {b: 1}\n" + BOMB.replace("[x, x, x, x, x, x, x, x, x]", "{<<: *a}"), "more than 100,000 values"),
    ],
)
def test_traps_are_refused_with_their_line(text, message):
    with within(20), pytest.raises(TrapError, match=message):
        read_yaml(text)


def test_the_limit_counts_what_aliases_stand_for():
    start = f"a: &a [{', '.join(['x'] * 999)}]\n"  # a list of 999 values
    most = MOST_NODES // 1000 - 2  # the rest for the mapping, its keys and both lists
    assert len(read_yaml(f"{start}b: [{', '.join(['*a'] * most)}]")["b"]) == most
    with pytest.raises(TrapError):
        read_yaml(f"{start}b: [{', '.join(['*a'] * (most + 1))}]")


def test_a_foreign_run_with_nested_aliases_is_reported(adapted_run, tmp_path):
    run = shutil.copytree(adapted_run, tmp_path / "run")
    (run / "recipe.yaml").write_text(BOMB)
    with within(60):
        write_report(read_run(run))
    assert "more than 100,000 values" in (run / "report.html").read_text()
