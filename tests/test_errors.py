"""Secrets of addresses stay out of what people and files are told."""

from unittest.mock import Mock

import polars as pl
import pytest
import yaml
from rich.console import Console

from prefrec import console
from prefrec.errors import DataError, without_parts_of, without_secrets
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe
from prefrec.report import write_report
from prefrec.runs.contents import read_run
from tiny_run import write_shop

SECRET = "S3cr3t"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://h.org/a/b.parquet", "http://h.org/a/b.parquet"),
        ("http://h.org/b.parquet?sig=S3cr3t&x=1", "http://h.org/b.parquet?***"),
        ("s3://KEY:S3cr3t@bucket/x/*.parquet: no", "s3://***@bucket/x/*.parquet: no"),
        ("/recipes/https:/me:S3cr3t@h.org/x?S3cr3t, no", "/recipes/https:/***@h.org/x?***, no"),
        ("'s3://me:p@S3cr3t@h/x@2?k=S3cr3t'.", "'s3://***@h/x@2?***'."),
        ("why? a@b: c:/d?e and x/y?z", "why? a@b: c:/d?e and x/y?z"),
    ],
)
def test_user_and_query_are_left_out(text, shown):
    assert without_secrets(text) == shown
    assert without_secrets({"a": [text, 3, None]}) == {"a": [shown, 3, None]}
    assert str(DataError(text)) == shown


def test_an_address_with_secrets_leaves_none(tmp_path, monkeypatch, capsys):
    address, shop = f"http://me:{SECRET}@h.org/log.parquet?t={SECRET}", write_shop(tmp_path / "shop")
    log = pl.scan_csv(shop["interactions"]).with_columns((pl.col("timestamp") + 1_600_000_000) * 1000)
    monkeypatch.setattr(pl, "scan_parquet", scan := Mock(return_value=log))
    data = {"source": "files", "interactions": address, "items": str(shop["items"]), "candidates": {"size": 6}}
    recipe = Recipe.model_validate({"name": "x", "data": data, "evaluate": {"zero_shot": False}})
    run_recipe(recipe, tmp_path / "run", until="prepare")
    write_report(read_run(tmp_path / "run"))
    scan.assert_called_once_with(address)
    files = [f for f in (tmp_path / "run").rglob("*") if f.is_file() and f.name != "recipe.yaml"]
    assert {"protocol.json", "stage.json", "report.html"} <= {f.name for f in files}
    assert [f.name for f in files if SECRET.encode() in f.read_bytes()] == []
    assert "log.parquet" in (tmp_path / "run/data/protocol.json").read_text()
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["data"]["interactions"].endswith(address[8:])

    for told in (f"for url ({address})", f"(location: log.parquet?t={SECRET})", f"user me:{SECRET}", f"t {SECRET}"):
        refused = pl.exceptions.ComputeError(f"error sending request {told}")
        monkeypatch.setattr(pl, "scan_parquet", Mock(side_effect=refused))
        with pytest.raises(DataError, match=r"h\.org/log\.parquet.*not a readable Parquet file") as error:
            run_recipe(recipe, tmp_path / "again", until="prepare")
        printed = capsys.readouterr()
        assert SECRET not in str(error.value) + printed.out + printed.err


@pytest.mark.parametrize(
    ("address", "text", "shown"),
    [
        ("http://me:S3cr3t@h/x?a=1", "me: S3cr3t (location: x?a=1), 1 try", "me: *** (location: x?***), 1 try"),
        ("http://h/x?sig=S3%2Fr3t&v=2", "S3/r3t and S3%2Fr3t, 2 tries", "*** and ***, 2 tries"),
        ("http://h/x?S3cr3t", "location: x?S3cr3t", "location: x?***"),
        ("http://h/x", "x is not there?", "x is not there?"),
    ],
)
def test_parts_of_an_address_are_left_out_wherever_they_are_repeated(address, text, shown):
    assert without_parts_of(address, text) == shown


def test_messages_leave_it_out(monkeypatch, capsys):
    monkeypatch.setattr(console, "console", Console())
    console.say(f"read http://h/x?{SECRET}")
    assert capsys.readouterr().out == "read http://h/x?***\n"
