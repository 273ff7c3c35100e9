"""`prefrec.fit`: files and frames with any columns, and errors in the words of Python."""

import gzip
import pickle
import uuid
from dataclasses import replace
from functools import partial
from unittest.mock import MagicMock

import pandas as pd
import polars as pl
import pytest
import yaml

import prefrec
from command import succeed
from prefrec import from_frames
from prefrec.errors import ConfigError, DataError
from prefrec.pipeline.opened import open_run
from prefrec.rankers import baselines
from prefrec.recipe import load_recipe
from prefrec.stages import title_tower
from tiny_run import read_tables, write_shop

COUNTS = {"evaluate": {"baselines": ["popularity", "window co-occurrence"], "zero_shot": False}}
"""A recipe without a language model."""
NO_FORM = {"timestamp_format": "%d.%m.%Y"}
"""A format that the times of the shop do not have."""


@pytest.fixture
def shop(tmp_path):
    """Log and catalogue with other column names, and two items with one title."""
    paths = write_shop(tmp_path)
    log, items = (pl.read_csv(path) for path in paths.values())
    items = items.with_columns(
        pl.when(pl.col("item_id") == "i7").then(pl.lit("Red Alien")).otherwise("title").alias("title")
    )
    names = {"user_id": "Kunde", "item_id": "Artikel", "timestamp": "bestellt am", "title": "Bezeichnung"}
    days = log.with_columns(pl.from_epoch(pl.col("timestamp") + 1_700_000_000).dt.to_string("%Y-%m-%d %H:%M:%S"))
    return tuple(frame.rename({c: names[c] for c in frame.columns if c in names}) for frame in (days, items))


def _columns(folder):
    return open_run(folder).recipe.data.columns.model_dump()


def test_columns_are_guessed_and_titles_numbered_as_by_init(shop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log, items = shop
    rec = prefrec.fit(log, items.to_pandas(), COUNTS, out=tmp_path / "run")
    assert {"Red Alien", "Red Alien (2)"} <= {*rec.data.catalogue.titles.values()}
    log.write_csv("orders.csv")
    items.write_csv("goods.csv")
    recipe = yaml.safe_load(succeed("init", "--interactions", "orders.csv", "--items", "goods.csv"))
    made = open_run(tmp_path / "run").recipe.data
    assert made.columns.model_dump() | recipe["data"]["columns"] == made.columns.model_dump()
    named = ("split", "history_length", "min_history", "duplicate_titles", "max_test_rows")
    assert {name: getattr(made, name) for name in named} == {name: recipe["data"][name] for name in named}


def test_paths_of_every_form_give_the_same_answers(shop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log, items = shop
    log.write_csv("orders.csv")
    log.write_parquet("orders.parquet")
    (tmp_path / "goods.csv.gz").write_bytes(gzip.compress(items.write_csv().encode()))
    want = prefrec.fit(log, items, COUNTS).recommend("i2", 5)
    assert prefrec.fit("orders.csv", "goods.csv.gz", COUNTS).recommend("i2", 5) == want
    assert prefrec.fit(tmp_path / "orders.parquet", items, COUNTS).recommend("i2", 5) == want
    assert prefrec.fit(pd.DataFrame(log.to_dict(as_series=False)), items, COUNTS).recommend("i2", 5) == want


class _Stream:
    """What a relation of DuckDB and frames of other libraries offer of themselves: a stream of Arrow, and no more."""

    def __init__(self, frame):
        self.table = frame.to_arrow()

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize("form", [pl.DataFrame.lazy, pl.DataFrame.to_pandas, pl.DataFrame.to_arrow, _Stream])
def test_frames_of_other_libraries_give_the_same_recommender(shop, tmp_path, form):
    same = [
        prefrec.fit(*tables, COUNTS, out=tmp_path / name)
        for name, tables in (("polars", shop), ("other", [form(frame) for frame in shop]))
    ]
    one, other = (rec.recommend_all(k=5) for rec in same)
    assert one.equals(other)


def test_columns_that_are_named_are_read(shop, tmp_path):
    log, items = shop
    log = log.with_columns(Kundin=pl.col("Kunde"), Kunde=pl.lit("u") + (pl.int_range(pl.len()) % 39).cast(str))
    prefrec.fit(log, items, COUNTS, columns={"user_id": "Kundin"}, out=tmp_path / "run")
    assert _columns(tmp_path / "run")["user"] == "Kundin"
    given = COUNTS | {"data": {"columns": {"user": "Kundin"}, "history_length": 3}}
    prefrec.fit(log, items, given, out=tmp_path / "given")
    assert _columns(tmp_path / "given")["user"] == "Kundin"
    assert open_run(tmp_path / "given").recipe.data.history_length == 3


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"user_id": "Kunden"},
            "interactions: no column 'Kunden' for user_id; .* did you mean 'Kunde'\\? .*columns=",
        ),
        ({"user": "Kunde", "title": "Name"}, "items: no column 'Name' for title; .* with columns={\"title\": …}"),
        ({"kunde": "Kunde"}, "columns: 'kunde' is not one of our columns user_id, item_id, .*, title"),
        ({"user_id": None}, r'columns\["user_id"\]: Input should be a valid string \(given: None\)'),
        ({"user_id": "Zeit"}, 'Name the right one with columns={"user_id": …}$'),
    ],
)
def test_errors_are_said_in_the_words_of_python(shop, columns, message):
    with pytest.raises((DataError, ConfigError), match=f"(?i){message}") as caught:
        prefrec.fit(*shop, COUNTS, columns=columns)
    assert "--" not in str(caught.value)
    assert "parquet" not in str(caught.value)


def test_data_settings_of_set_hold_for_the_guess_too(shop, tmp_path):
    log, items = shop
    log = log.with_columns(Uhr=pl.col("bestellt am"))
    (tmp_path / "goods.csv").write_bytes(items.write_csv().replace("Red Alien", "Café").encode("cp1252"))
    told = r'try set=\{"data\.encoding": "cp1252"\} and check the accents'
    with pytest.raises(DataError, match=told):
        prefrec.fit(log, tmp_path / "goods.csv", COUNTS)
    with pytest.raises(DataError, match=r'choose set=\{"data\.duplicate_titles": "merge"\} \(they are the same item'):
        prefrec.fit(log, items, COUNTS, set={"data.duplicate_titles": "error"})
    changes = {"data.encoding": "cp1252", "data.columns.timestamp": "Uhr"}
    rec = prefrec.fit(log, tmp_path / "goods.csv", COUNTS, set=changes, out=tmp_path / "run")
    assert "Café" in rec.data.catalogue.titles.values()
    assert _columns(tmp_path / "run")["timestamp"] == "Uhr"


def test_no_files_of_the_recipes_data_are_read(shop, tmp_path):
    log, items = shop
    files = {"interactions": "other.csv", "items": "other.csv", "more_interactions": ["other.csv"]}
    given = COUNTS | {"data": {"source": "files", **files, "users": "other.csv"}}
    prefrec.fit(log, items, given, out=tmp_path / "run")
    made = open_run(tmp_path / "run").recipe.data
    assert (made.more_interactions, made.users) == ([], None)
    log[:200].write_csv(tmp_path / "early.csv")
    log[200:].write_csv(tmp_path / "late.csv")
    set_by = {"data.more_interactions": [str(tmp_path / "late.csv")]}
    both = prefrec.fit(tmp_path / "early.csv", items, given, set=set_by)
    assert both.data.train_interactions.height > 200


def test_a_run_is_named_after_its_folder_without_what_names_do_not_allow(shop, tmp_path):
    for folder, name in (("my run", "myrun"), ("-", "fit")):
        prefrec.fit(*shop, COUNTS, out=tmp_path / folder)
        assert open_run(tmp_path / folder).recipe.name == name


def test_a_table_without_users_or_items_says_which_argument_lacks_them(shop):
    log, items = shop
    with pytest.raises(DataError, match=r'^interactions: .* looks like a user. Name it with columns={"user_id": …}$'):
        prefrec.fit(log.select("Artikel", "bestellt am"), items, COUNTS)
    with pytest.raises(DataError, match=r'Name both with columns={"item_id": …} and columns={"catalogue_item": …}$'):
        prefrec.fit(log, items.select("Bezeichnung", nr="Artikel" + pl.col("Artikel")), COUNTS)
    with pytest.raises(
        DataError, match=r"^interactions: none of the log's 60 items .* use the same ids in both files"
    ):
        prefrec.fit(log, items.with_columns(Artikel="Artikel" + pl.col("Artikel")), COUNTS)
    with pytest.raises(DataError, match=r"^interactions, row 0, column history: .* change columns={"):
        prefrec.fit(log.rename({"bestellt am": "history"}), items, COUNTS, columns={"timestamp": "history"} | NO_FORM)
    with pytest.raises(DataError, match="no such file"):
        prefrec.fit("orders.csv", items, COUNTS)


@pytest.mark.parametrize(
    ("values", "types"),
    [(["u", 5], "int, str"), ([5, "u"], "int, str"), ([2**70, 1], "int"), ([[1], 2], "int, list")],
)
def test_a_pandas_column_of_mixed_types_is_named_with_its_remedy(shop, values, types):
    log, items = (frame.to_pandas() for frame in shop)
    mixed = log.assign(Kunde=pd.Series(values * len(log), dtype=object)[: len(log)])
    told = rf"column 'Kunde': values of the types {types} do not fit into one column \(.+\); .* with \.astype"
    with pytest.raises(DataError, match=f"^interactions, {told}"):
        prefrec.fit(mixed, items, COUNTS)
    with pytest.raises(DataError, match=f"^items, {told}"):
        prefrec.fit(log, items.assign(Kunde=mixed["Kunde"]), COUNTS)


@pytest.mark.parametrize("values", [[uuid.uuid4()], [{}]], ids=["objects", "empty records"])
def test_a_column_that_cannot_be_stored_is_named_with_its_remedy(shop, values):
    log, items = shop
    told = r"column 'Kunde': values of the type \w+.* cannot be stored; convert them .* or drop the column$"
    with pytest.raises(DataError, match=f"^interactions, {told}"):
        prefrec.fit(log.with_columns(Kunde=pl.Series(values * len(log))), items, COUNTS)
    with pytest.raises(DataError, match=f"^items, {told}"):
        prefrec.fit(log, items.with_columns(Kunde=pl.Series(values * len(items))).lazy(), COUNTS)


def test_periods_of_pandas_are_refused_with_their_conversion(shop):
    log, items = shop
    periods = pl.Series([0] * len(log)).ext.to(pl.Extension("pandas.period", pl.Int64, '{"freq": "M"}'))
    told = r"interactions, column 'Tag': values of the type pandas.period cannot be read.*\.dt\.to_timestamp\(\)"
    with pytest.raises(DataError, match=told):
        prefrec.fit(log.with_columns(Tag=periods), items, COUNTS)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"recipe": {"data": None}}, "data: expected a dict of settings, got None"),
        ({"recipe": {"data": []}}, r"data: expected a dict of settings, got \[\]"),
        ({"recipe": {"data": {"columns": None}}}, r"data\.columns: expected a dict of settings, got None"),
        ({"align": [1]}, r"align: expected a list of dicts of settings, .* got \[1\]; correct it"),
        ({"align": {"loss": "dpo"}}, "align: expected a list of dicts"),
        ({"align": "s-dpo"}, "align: expected a list of dicts"),
        ({"columns": {"user_id": "Kunde", "user": "Kundin"}}, "columns: 'user_id' and 'user' are two names of one"),
    ],
)
def test_malformed_arguments_are_named(shop, arguments, told):
    with pytest.raises(ConfigError, match=f"^{told}"):
        prefrec.fit(*shop, **{"recipe": COUNTS} | arguments)


def test_a_table_that_is_no_frame_is_refused_as_a_whole(shop):
    log, items = shop
    twice = pd.concat([items.to_pandas()] * 2, axis=1)
    for wrong, kind in ((twice, "DataFrame"), (pd.Series([1, 2]), "Series"), ({"a": [1, "x"]}, "dict")):
        with pytest.raises(DataError, match=f"^items: expected a frame of polars, pandas or Arrow, .* got {kind}: "):
            prefrec.fit(log, wrong, COUNTS)


def test_without_a_language_model_a_presets_blend_leaves_its_part_out(tmp_path, capsys):
    (tmp_path / "shop.yaml").write_text("name: shop\npreset: fast\nsft: null\n")
    (blend,) = (r for r in load_recipe(tmp_path / "shop.yaml").rankers if r.kind == "blend")
    assert "sft" not in blend.parts
    assert "EASE" in blend.parts
    assert "blend: sft is left out" in capsys.readouterr().err
    (tmp_path / "shop.yaml").write_text("name: shop\npreset: titles\n")
    (blend,) = (r for r in load_recipe(tmp_path / "shop.yaml", ["sft=null"]).rankers if r.kind == "blend")
    assert "sft" not in blend.parts
    own = "rankers: [{kind: blend, parts: [EASE, s-dpo]}]"
    (tmp_path / "shop.yaml").write_text(f"name: shop\npreset: fast\n{own}\n")
    with pytest.raises(ConfigError, match="no earlier ranker is called 's-dpo'"):
        load_recipe(tmp_path / "shop.yaml")


def test_fit_without_an_alignment(shop, tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr("prefrec.from_frames.run_recipe", lambda recipe, folder: ran.append(recipe))
    monkeypatch.setattr("prefrec.from_frames.Recommender", MagicMock())
    blend = [{"kind": "blend", "parts": ["EASE", "s-dpo"]}]
    aligned = {"preset": "fast", "align": [{"name": "s-dpo"}]}
    prefrec.fit(*shop, aligned, align=None, out=tmp_path / "none")
    prefrec.fit(*shop, "fast", align=[{"name": "mine", "num_negatives": 3}], out=tmp_path / "mine")
    prefrec.fit(*shop, aligned | {"rankers": blend}, out=tmp_path / "recipe")
    prefrec.fit(*shop, out=tmp_path / "default")
    assert [[a.name for a in recipe.align] for recipe in ran] == [[], ["mine"], ["s-dpo"], []]
    assert [r.sft is not None for r in ran] == [True, True, True, False]
    assert ran[0].sft.global_batch_size == 8  # the preset's: only large logs get batches of 32


def test_fit_reads_the_prepared_data_once_and_shows_the_results(shop, tmp_path, monkeypatch):
    tables = read_tables(monkeypatch)
    rec = prefrec.fit(*shop, COUNTS, out=tmp_path / "run")
    answers = rec.recommend("i2", 5)
    assert tables.count("interactions.parquet") == 1
    again = prefrec.Recommender.from_run(tmp_path / "run")
    assert again.recommend("i2", 5) == answers
    assert (again.stage.name, again.results) == (rec.stage.name, rec.results)
    assert "window co-occurrence" in str(rec.results)
    assert f"{rec.stage.name} is the default" in str(rec.results)
    assert pickle.loads(pickle.dumps(rec)).recommend("i2", 5) == answers


@pytest.mark.parametrize("refit", [False, True])
def test_the_first_query_after_a_run_loads_no_ranker_again(shop, tmp_path, monkeypatch, refit):
    loaded, runs, whole = [], [], from_frames.run_recipe
    load = title_tower.load_tower
    monkeypatch.setattr(title_tower, "load_tower", lambda *of: loaded.append("title-tower") or load(*of))
    fits = baselines._BASELINES
    for name in ("popularity", "EASE"):
        counted = partial(lambda name, fit, *of: loaded.append(name) or fit(*of), name, fits[name])
        monkeypatch.setitem(fits, name, counted)
    monkeypatch.setattr(from_frames, "run_recipe", lambda *of: runs.append(whole(*of)) or runs[0])
    tower = {"kind": "title-tower", "vectors": "tfidf"}
    blend = {"kind": "blend", "parts": ["popularity", "EASE", "title-tower"]}
    prefrec.fit(*shop, COUNTS | {"rankers": [tower, blend], "refit": refit}, out=tmp_path / "run")
    assert {*loaded} == {"title-tower", "popularity", "EASE"}
    loaded.clear()
    rec = prefrec.Recommender.from_run(runs[0], "blend")
    # As many users as there were examples under test: their scores must not be taken for these.
    users = [e.user_id for e in rec.data.test]
    histories = [[item] for item in rec.data.catalogue.ids[: len(users)]]
    answers = rec.recommend(histories, 5)
    assert loaded == []
    assert prefrec.Recommender.from_run(tmp_path / "run", "blend").recommend(histories, 5) == answers
    assert {*loaded} == {"title-tower", "popularity", "EASE"}
    changed = replace(runs[0], data=replace(rec.data))
    assert changed.plan.inputs.data is changed.data  # rankers of other data are not those in memory


def test_baselines_train_no_language_model(shop, tmp_path, monkeypatch):
    monkeypatch.setattr("prefrec.rankers.lm.load_weights", lambda *_, **__: pytest.fail("a language model is loaded"))
    changes = {"rankers.title-tower.vectors": "tfidf", "model.name": "not-there", "evaluate.baselines": []}
    rec = prefrec.fit(*shop, "baselines", set=changes, out=tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert (run.recipe.sft, run.recipe.align, run.models) == (None, [], [])
    assert run.plan.names == ["title-tower", "blend"]
    assert rec.stage.name in run.plan.names
    blend = prefrec.Recommender.from_run(tmp_path / "run", "blend")
    assert len(blend.recommend(user="u03", k=5)) == 5
    assert {"EASE", "title-tower"} & {*blend.explain(user="u03", item="i9")[0].parts}
    assert (
        prefrec.Recommender.from_run(tmp_path / "run", "title-tower").similar("i2").by
        == "item vectors of title-tower"
    )
