"""`prefrec init`: a recipe that runs as it is, on standard output or in a file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from command import prefrec, refused, succeed
from prefrec.data import read_prepared
from prefrec.presets import preset
from prefrec.proposal import suggest
from prefrec.recipe import load_recipe
from tiny_run import write_shop


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The files of a shop with columns of other names, in the current folder."""
    write_shop(tmp_path)
    monkeypatch.chdir(tmp_path)
    log = (tmp_path / "log.csv").read_text()
    (tmp_path / "orders.csv").write_text(log.replace("user_id,item_id,timestamp", "customer,sku,ordered at"))
    (tmp_path / "goods.csv").write_text((tmp_path / "items.csv").read_text().replace("item_id,title", "sku,name"))
    return "--interactions", "orders.csv", "--items", "goods.csv"


@pytest.mark.parametrize("name", ["fast", "paper", "baselines"])
def test_the_recipe_runs_as_it_is(shop, tmp_path, name):
    (tmp_path / "recipes").mkdir()
    assert succeed("init", *shop, "--preset", name, "--out", "recipes/shop.yaml") == "Recipe: recipes/shop.yaml\n"
    recipe = load_recipe(tmp_path / "recipes" / "shop.yaml")
    assert (recipe.name, recipe.data.history_length) == ("shop", 8)
    raw, expected = yaml.safe_load(Path("recipes/shop.yaml").read_text()), preset(name)
    assert {key: raw[key] for key in expected} == expected
    assert succeed("run", "recipes/shop.yaml", "--until", "prepare") == "Run: runs/shop\n"
    assert len(read_prepared(tmp_path / "runs" / "shop" / "data").test) == 40


def test_a_large_log_gets_larger_batches_and_fewer_epochs(shop, monkeypatch):
    fast = ("init", *shop, "--preset", "fast")
    small = yaml.safe_load(succeed(*fast))
    assert (small["sft"]["per_device_batch_size"], small["sft"]["learning_rate"]) == (8, 3e-4)
    monkeypatch.setattr(suggest, "LARGE", 1)
    large = yaml.safe_load(succeed(*fast))
    changed = {"epochs": 2, "global_batch_size": 32, "per_device_batch_size": 32, "learning_rate": 6e-4}
    assert large == small | {"sft": small["sft"] | changed}
    assert "batch_size: 32" not in succeed("init", *shop, "--preset", "titles")


def test_columns_of_the_items_are_offered_to_the_model(shop, tmp_path):
    goods = (tmp_path / "goods.csv").read_text().splitlines()
    more = ["brand,a link,price,year", *(f"B{n % 5},x,{n}.99,{1990 + n % 9}" for n in range(len(goods) - 1))]
    (tmp_path / "goods.csv").write_text("\n".join(f"{a},{b}" for a, b in zip(goods, more, strict=True)))
    text = succeed("init", *shop, "--preset", "fast")
    assert text.count("  # item_text: '{{ title }} ({{ brand }}, {{ year }})' #") == 1
    (tmp_path / "shop.yaml").write_text(text.replace("# item_text", "item_text"))
    assert load_recipe(tmp_path / "shop.yaml").model.item_text == "{{ title }} ({{ brand }}, {{ year }})"
    told = refused("run", "shop.yaml", "--until", "prepare", "--set", 'model.item_text="{{ title }} {{ brnd }}"')
    assert "no column 'brnd' in the catalogue, which has item_id, title, brand, a link, price, year" in told


def test_places_for_new_items_are_offered_where_there_are_some(shop, tmp_path):
    assert "new_every" not in succeed("init", *shop)
    goods = tmp_path / "goods.csv"
    goods.write_text(goods.read_text() + "n1,New thing 1\nn2,New thing 2\n")
    text = succeed("init", *shop)
    (line,) = [line for line in text.splitlines() if "new_every" in line]
    assert yaml.safe_load(line.removeprefix("# ")) == {"answers": {"new_every": 10}}
    assert "answers" not in yaml.safe_load(text)


def test_standard_output_holds_the_recipe_alone(shop, tmp_path):
    done = prefrec("init", *shop, "--columns.user", "customer")
    assert done.code == 0
    (tmp_path / "shop.yaml").write_text(done.out)
    columns = load_recipe(tmp_path / "shop.yaml").data.columns
    assert (columns.user, columns.item, columns.timestamp, columns.title) == ("customer", "sku", "ordered at", "name")
    assert (columns.rating, columns.catalogue_item) == (None, "sku")
    assert "    user: customer              # as named\n" in done.out
    # Times that only count are doubtful, and people see that beside a redirected recipe.
    assert "    timestamp: ordered at       # check: numbers, not dates\n" in done.out
    assert done.err.startswith("warning: columns.timestamp: ordered at: check: numbers, not dates\n")


def test_the_default_has_no_language_model_and_says_what_one_costs_and_adds(shop):
    done = prefrec("init", *shop)
    assert {"model", "sft", "align"}.isdisjoint(yaml.safe_load(done.out))
    assert yaml.safe_load(done.out)["rankers"] == preset("baselines")["rankers"]
    assert "--preset fast adds one: it needs the extra lm (torch) and minutes to train" in done.err
    assert "significant in none of seven splits" in done.err
    assert "--preset fast" not in prefrec("init", *shop, "--preset", "fast").err


def test_what_is_refused(shop, tmp_path):
    (tmp_path / "old.yaml").touch()
    for option, value, message in (
        ("--out", "old.yaml", "old.yaml already exists: name another file with --out, or delete it"),
        ("--columns.user", "custmer", "no column 'custmer' for user_id; there are 'customer', 'sku'"),
        ("--columns.title", "sku2", "goods.csv: no column 'sku2' for title"),
        ("--interactions", "order.csv", "order.csv: no such file. Did you mean 'orders.csv'?"),
    ):
        assert message in refused("init", *shop, option, value)
    assert not (tmp_path / "old.yaml").read_text()


@pytest.mark.parametrize(("file", "name"), [("2020 log.csv", "2020log"), ("_.csv", "own")])
def test_the_name_is_one_of_a_run(shop, tmp_path, file, name):
    (tmp_path / "orders.csv").rename(file)
    (tmp_path / "r.yaml").write_text(succeed("init", "--interactions", file, *shop[2:]))
    recipe = load_recipe(tmp_path / "r.yaml")
    assert (recipe.name, recipe.data.interactions) == (name, tmp_path / file)


def test_another_encoding(shop, tmp_path):
    goods = (tmp_path / "goods.csv").read_text().replace("Alien", "Aliën")
    (tmp_path / "goods.csv").write_text(goods, encoding="cp1252")
    assert "try --encoding cp1252" in refused("init", *shop)
    (tmp_path / "r.yaml").write_text(succeed("init", *shop, "--encoding", "cp1252"))
    assert load_recipe(tmp_path / "r.yaml").data.encoding == "cp1252"


def test_published_examples_keep_their_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pens").mkdir()
    rows = [(n, u, [(u * 7 + n + k) % 40 for k in range(5)]) for n in range(6) for u in range(20)]
    for name, days in (("train", range(5)), ("test", [5])):
        lines = [f'u{u},"{items}",{(12_000 + n) * 86_400}\n' for n, u, items in rows if n in days]
        Path(f"pens/{name}.csv").write_text("user_id,item_ids,timestamp\n" + "".join(lines))
    Path("pens/id2name4Rec.json").write_text(json.dumps({str(i): f"Pen {i % 39}" for i in range(40)}))
    files = ("--interactions", "pens", "--items", "pens/id2name4Rec.json")
    assert succeed("init", *files, "--out", "pens.yaml") == "Recipe: pens.yaml\n"
    text, data = Path("pens.yaml").read_text(), load_recipe(Path("pens.yaml")).data
    assert (data.source, data.split, data.history_length, data.min_history) == ("windows", "given", 4, 3)
    assert "  path: pens\n  items: pens/id2name4Rec.json\n  encoding: utf-8\n  duplicate_titles: number" in text
    assert "columns:" not in text
    assert succeed("run", "pens.yaml", "--until", "prepare") == "Run: runs/pens\n"
    made = read_prepared(Path("runs/pens/data"))
    assert f"# that of the files: {len(made.train)} train, " in text
    Path("pens/test.csv").unlink()
    assert "no test examples; expected a file such as test.csv" in refused("init", *files)


def test_writing_a_recipe_loads_no_heavy_library(shop):
    heavy = "{'torch', 'transformers', 'peft', 'scipy.optimize'} & {*sys.modules}"
    code = f"import atexit, sys, prefrec.cli; atexit.register(lambda: print({heavy})); prefrec.cli.main()"
    done = subprocess.run([sys.executable, "-c", code, "init", *shop], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("name: orders")
    assert done.stdout.splitlines()[-1] == "set()"
