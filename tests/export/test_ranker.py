"""Exports give the scores of the run when transformers and PEFT alone read them."""

import json
import re
import shutil
import stat
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jinja2
import numpy as np
import polars as pl
import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefrec.data import Query, RankingExample
from prefrec.errors import ConfigError, ModelError
from prefrec.evaluation import audit_prepared, evaluate_predictions, target_ranks
from prefrec.evaluation.predictions import prediction_frame
from prefrec.export import parts
from prefrec.export import ranker as export
from prefrec.export.ranker import export_ranker, model_card
from prefrec.files import write_json
from prefrec.lm.items import add_items, save_item_model
from prefrec.lm.names import EMBEDDED, EMBEDDED_HUB_ID, base_id
from prefrec.pipeline.opened import open_run
from prefrec.prompts import ChoiceSet, load_template
from prefrec.recommend.popular import Popular
from prefrec.recommender import Recommender
from prefrec.runs.contents import read_run
from prefrec.stages.language_model import LMStage
from prefrec.training import lora_config
from sealed import write_metrics
from served_run import dated, with_model
from slow import slow_logps
from tiny import tiny_llama
from tiny_training import draw_adapters

HISTORY, CANDIDATES = ("i2", "i7"), ("i50", "i41", "i24")


@pytest.fixture(scope="module")
def run(adapted_run):
    return open_run(adapted_run)


def _of_the_run(run, ranker):
    return run.ranker(ranker).score([RankingExample("u", HISTORY, CANDIDATES, CANDIDATES[0])])[0]


def _of_the_folder(run, model, folder):
    """Scores [C] with nothing but what lies in the folder: its tokenizer, its prompt, its model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = jinja2.Template((folder / "prompt.jinja2").read_text(encoding="utf-8"))
    titles = run.data.catalogue.titles_of(CANDIDATES)
    prompt = template.render(history=run.data.catalogue.titles_of(HISTORY), candidates=titles)
    begin = "" if prompt[-1].isspace() else " "
    ids, *joint = (
        tokenizer(text, split_special_tokens=True)["input_ids"]
        for text in (prompt, *(prompt + begin + t for t in titles))
    )
    answers = tuple((*j[len(ids) :], tokenizer.eos_token_id) for j in joint)
    with torch.no_grad():
        return slow_logps(model.eval(), ChoiceSet(tuple(ids), answers)).numpy()


def test_an_adapter_gives_the_same_scores(run, tmp_path):
    folder = export_ranker(run, "s-dpo", tmp_path / "new" / "s-dpo")
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == run.recipe.model.name
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    np.testing.assert_allclose(_of_the_folder(run, model, folder), _of_the_run(run, "s-dpo"), rtol=1e-4)
    assert not list(folder.glob("*.bin"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    items = pl.read_parquet(folder / "items.parquet")
    assert items.columns == ["item_id", "title", "recent", "place"]
    assert items[:, :2].equals(run.data.catalogue.frame.select("item_id", "title"))
    assert items.sort("place")["item_id"].to_list() == Popular.of(run.data).ids


@pytest.mark.parametrize("ranker", ["zero-shot", "dpo"])
def test_merged_weights_give_the_same_scores(run, tmp_path, ranker):
    folder = export_ranker(run, ranker, tmp_path / ranker, merged=True)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    np.testing.assert_allclose(_of_the_folder(run, model, folder), _of_the_run(run, ranker), rtol=1e-4)


DATED = "dated"
OWN = (
    "\n{% for title in history %}\n  - {{ title }}\n{% endfor %}\n{% if candidates %}\n{{ candidates }}\n{% endif %}"
)


@pytest.mark.parametrize("template", ["1", "history", "own.jinja2"])
def test_plain_jinja2_renders_the_prompt_of_the_training(run, tmp_path, monkeypatch, template):
    monkeypatch.chdir(tmp_path)
    Path("own.jinja2").write_text(OWN)
    folder = export_ranker(with_model(run, templates=[template]), "sft", tmp_path / "out")
    plain = jinja2.Template((folder / "prompt.jinja2").read_text(encoding="utf-8"))
    trained = load_template(template, domain="movies")
    for history, candidates in product(([], ["A"], ["A", "B {{ x }}", "C"]), ([], ["X"], ["X", "Y"])):
        assert plain.render(history=history, candidates=candidates) == trained.render(history, candidates)


@pytest.mark.parametrize(
    ("merged", "model"),
    [
        (True, {}),
        (False, {"objective": "catalogue", "templates": ["history"]}),
        (True, {"chat": True, "objective": "catalogue"}),
        (False, DATED),
    ],
)
def test_the_code_of_the_card_ranks_as_the_run(run, tmp_path, monkeypatch, capsys, merged, model):
    run = dated(run) if model == DATED else with_model(run, **model)
    monkeypatch.chdir(export_ranker(run, "s-dpo", tmp_path / "out", merged=merged))
    ours, plain = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    if run.recipe.model.chat:  # in a chat, special tokens in a title are not read as text by others
        plain = plain.replace("titles[:2], titles[2:5]", "titles[2:4], titles[4:7]")
        ours = ours.replace("\nprint", "\ntitles = titles[2:]\nprint", 1)
    ids = run.data.catalogue.ids[2 * run.recipe.model.chat :]
    want = run.ranker("s-dpo").score([Query((*ids[:2],), (*ids[2:5],))])[0]
    capsys.readouterr()
    exec(plain, {})
    printed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [title for _, title in printed] == run.data.catalogue.titles_of(ids[2:5])
    np.testing.assert_allclose([float(score) for score, _ in printed], want, atol=2e-3)
    exec(ours, found := {})
    ranked = found["rec"].rank(found["titles"][:2], found["titles"][2:5])
    assert [r.title for r in ranked] == [printed[i][1] for i in np.argsort(-want)]


def test_items_as_tokens_are_exported_whole(run, tmp_path, monkeypatch):
    model = tiny_llama(seed=3)
    add_items(model, run.data.catalogue.ids, torch.randn(len(run.data.catalogue), 8))
    save_item_model(model, tmp_path / "weights")
    of_items = with_model(run, answers="items", objective="catalogue", templates=["1"])
    entry = LMStage("sft", tmp_path / "weights", run.data, of_items.recipe.model)
    monkeypatch.setattr(type(run), "stage", lambda run, name: entry)
    folder = export_ranker(of_items, "sft", tmp_path / "out")
    assert not (folder / "prompt.jinja2").exists()
    card = (folder / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---\n")[1])
    assert (header["library_name"], header["tags"]) == ("prefrec", ["recommender-systems", "prefrec", "sft"])
    assert card.count("```python") == 1
    assert "with one token per item" in card
    found, want = Recommender.from_pretrained(folder), Recommender(run.data, entry)
    assert found.recommend(HISTORY, 5) == want.recommend(HISTORY, 5)
    assert found.rank(HISTORY, CANDIDATES) == want.rank(HISTORY, CANDIDATES)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["embed_tokens"], ["q_proj"]])
def test_of_tied_layers_each_is_merged_with_its_own_adapter(run, tmp_path, monkeypatch, bpe_tokenizer, targets):
    tiny_llama(tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    bpe_tokenizer.save_pretrained(tmp_path / "tied")
    adapted = get_peft_model(tiny_llama(tie_word_embeddings=True), lora_config(r=4, targets=targets))
    draw_adapters(adapted, 0.2, "lora_")
    adapter = tmp_path / "adapter"
    adapted.save_pretrained(adapter, save_embedding_layers=False)
    tied = with_model(run, name=str(tmp_path / "tied"))
    monkeypatch.setattr(type(run), "stage", lambda run, name: SimpleNamespace(weights=adapter, model={}))
    folder = export_ranker(tied, "sft", tmp_path / "merged", merged=True)

    ids = torch.arange(3, 40)[None]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "tied", dtype=torch.float32)
    unmerged = PeftModel.from_pretrained(plain, adapter)
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, unmerged(ids).logits, rtol=1e-4, atol=1e-3)
    assert merged.config.tie_word_embeddings == (targets == ["q_proj"])


def _with_own_template(run, folder):
    """The run with the path of a template of its own, which is deleted after the export."""
    folder.mkdir()
    (folder / "own.jinja2").write_text(OWN)
    return with_model(run, templates=[str(folder / "own.jinja2"), "history"])


def test_the_recipe_of_parts_has_no_paths(run, tmp_path):
    own = _with_own_template(run, tmp_path / "place")
    folder = export_ranker(own, "window co-occurrence", tmp_path / "out")
    shutil.rmtree(tmp_path / "place")
    written = yaml.safe_load((folder / "recipe.yaml").read_text())["model"]
    assert written["templates"] == ["own.jinja2", "history"]
    assert written["name"] == Path(run.recipe.model.name).name != run.recipe.model.name
    assert len(Recommender.from_pretrained(folder).recommend(HISTORY, 3)) == 3


def test_parts_with_items_as_tokens_need_no_template_of_the_run(run, tmp_path, monkeypatch):
    own = with_model(_with_own_template(run, tmp_path / "place"), answers="items", objective="catalogue")
    evaluate = own.recipe.evaluate.model_copy(update={"zero_shot": False, "generate_rows": 0})
    own = replace(own, recipe=own.recipe.model_copy(update={"lora": None, "evaluate": evaluate}))
    folder = export_ranker(own, "window co-occurrence", tmp_path / "out")
    opened = Mock()
    monkeypatch.setattr(parts, "planned", opened)
    Recommender.from_pretrained(folder)
    model = opened.call_args.args[0].model
    assert (model.templates, model.name) == (["history"], run.recipe.model.name)


def test_refusals_leave_nothing(run, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("x")
    for asked, ranker, out, message in (
        (run, "sft", "taken", "taken exists: name a new folder, or an empty one"),
        (run, "zero-shot", "out", "zero-shot has no adapter: export it with --merged"),
        (with_model(run, layers=1), "sft", "out", "sft has a base with fewer layers, which others cannot load"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_ranker(asked, ranker, tmp_path / out)
    monkeypatch.setattr(export, "load_tokenizer", lambda name: (_ for _ in ()).throw(ModelError("no tokenizer")))
    with pytest.raises(ModelError, match="no tokenizer"):
        export_ranker(run, "sft", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_a_draft_that_a_killed_export_has_left_is_emptied(run, tmp_path):
    left = tmp_path / ".s.dpo.tmp"
    (left / "data").mkdir(parents=True)
    (left / "data" / "old.parquet").write_text("half")
    (left / "old").symlink_to(tmp_path)
    export_ranker(run, "sft", tmp_path / "dpo")
    assert left.exists()  # of another export
    export_ranker(run, "sft", tmp_path / "s.dpo")
    assert {p.name for p in tmp_path.iterdir()} == {"dpo", "s.dpo"}
    names = [sorted(p.name for p in (tmp_path / out).iterdir()) for out in ("dpo", "s.dpo")]
    assert names[0] == names[1]


def test_the_card_says_how_it_was_made_and_measured(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    examples, rng, frames = run.data.test, np.random.default_rng(0), []
    for name in ("random", "sft", "s-dpo"):
        scores = rng.normal(size=(len(examples), 6))
        ranks = target_ranks(scores, [e.target_index for e in examples])
        frames.append(prediction_frame(name, examples, scores, ranks))
    audit = audit_prepared(run.data, "test", "train", 0)
    evaluation = evaluate_predictions(pl.concat(frames), ks=[1, 3], audit=audit)
    write_metrics(folder, {"split": "test", "evaluation": evaluation.to_json(), "generation": None})
    write_json(folder / "environment.json", {"prefrec": "0.1.0", "commit": "abc", "platform": "a machine"})
    text = (export_ranker(open_run(folder), "s-dpo", tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["tags"] == ["recommender-systems", "prefrec", "lora", "s-dpo", "arxiv:2406.09215"]
    assert "base_model" not in header  # a local folder is nothing on the hub
    (result,) = header["model-index"][0]["results"]
    assert [(m["type"], m["value"]) for m in result["metrics"]] == [
        (name, pytest.approx(interval.mean, abs=1e-4)) for name, interval in evaluation.metrics["s-dpo"].items()
    ]
    for part in (
        *("- training: SFT, then S-DPO", "- num_negatives: 3", f"On 40 test examples of {evaluation.users} users"),
        *(evaluation.audit.verdict, "Terms of the data: not known to prefrec", "commit abc", "- base: `model`"),
    ):
        assert part in body
    assert "a machine" not in body
    assert str(run.folder.parent) not in text  # no paths of this machine


def test_the_card_of_the_embedded_model_names_its_base_and_terms(run):
    data = run.recipe.data.model_copy(update={"source": "movielens-100k"})
    recipe = with_model(run, name=EMBEDDED).recipe.model_copy(update={"data": data})
    card = model_card(read_run(run.folder), recipe, "sft", base_id(EMBEDDED), merged=False)
    header = yaml.safe_load(card.split("---\n")[1])
    assert (header["base_model"], header["base_model_relation"]) == (EMBEDDED_HUB_ID, "adapter")
    for part in ("4-bit GGUF", "GroupLens", "Not evaluated."):
        assert part in card
    base = model_card(read_run(run.folder), recipe, "zero-shot", base_id(EMBEDDED), merged=True)
    assert yaml.safe_load(base.split("---\n")[1])["license"] == "apache-2.0"
