"""The page in a real browser: what it asks and shows, by mouse and keyboard, and titles that are markup.

The picture in the documentation is made of a run by
`PREFREC_SHOWN=runs/demo python -m pytest tests/server/test_page.py -k picture`.
"""

import os
import re
import socket
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from hostile_pages import CHROMIUM, NO_BROWSER
from prefrec.pipeline.opened import open_run
from prefrec.recommend.popular import Popular
from prefrec_server.app import Settings, create_app
from prefrec_server.bodies import RankRequest
from prefrec_server.page import page_files, side_by_side
from prefrec_server.server import open_engine
from served_run import MARKUP

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect


@pytest.fixture(autouse=True, scope="module")
def drawn(plots):
    """Draw the training curves."""


@pytest.fixture(scope="module")
def served(run):
    """A running server with the page, and its engine."""
    engine = open_engine(run)
    with _served(engine, "tiny <run>", run.stages.values()) as url:
        yield url, engine
    engine.close()


@contextmanager
def _served(engine, name, stages=(), model="llama", **settings):
    """The address at which an engine and its page are served."""
    app = create_app(engine, Settings(name, model, page=page_files(name, model, engine, [*stages]), **settings))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=30)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip(NO_BROWSER)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, served):
    """A fresh page without an example, with SFT beside S-DPO; an error on its console fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("dialog", lambda d: (wrong.append(f"dialog {d.message}"), d.dismiss()))
    example = {"row": 0, "rows": 1, "history": [], "candidates": [], "target": {"item_id": "", "title": ""}}
    page.route("**/v1/example*", lambda route: route.fulfill(json=example), times=1)
    page.goto(served[0])
    page.locator("#left select").select_option("sft")
    page.locator("#right select").select_option("s-dpo")
    yield page
    context.close()
    assert wrong == []


def _add(page, where, text, title):
    page.locator(f"#{where}-input").fill(text)
    page.locator(f"#{where}-options [role=option]", has_text=title).first.click()
    expect(page.locator(f"#{where} .chosen li").last).to_contain_text(title)


def _titles(page, side):
    return page.locator(f"#{side} .ranking button").all_inner_texts()


def test_choose_rank_and_ask_why(page, served):
    for text, title in (("red em", "Red Emma"), ("old night", "Old Night")):
        _add(page, "history", text, title)
    for text, title in (("wild a", "Wild Alien"), ("i11", "Old Heat"), ("lost days", "Lost Days")):
        _add(page, "candidates", text, title)
    page.get_by_role("button", name="Rank candidates").click()
    expect(page.locator("#right .ranking li")).to_have_count(3)
    _, engine = served
    for side, ranker in (("left", "sft"), ("right", "s-dpo")):
        body = {"history": ["Red Emma", "Old Night"], "candidates": ["Wild Alien", "Old Heat", "Lost Days"]}
        asked = engine.rank(RankRequest(**body, ranker=ranker))
        answer = asked.answer(engine.submit(asked, 60).result(60))
        assert _titles(page, side) == [line.title for line in answer.ranking]
        shown = (f"{100 * answer.ranking[0].share:.1f}", "100")
        assert page.locator(f"#{side} .share").first.inner_text().rstrip("%") in shown
    page.locator("#right .ranking button", has_text="Lost Days").click()
    expect(page.locator("#why-title")).to_have_text("Why “Lost Days”?")
    expect(page.locator("#why-left .reasons li")).to_have_count(2)
    page.locator("#training summary").click()
    assert page.locator("#training img.plot").count() == 3


def test_the_keyboard_alone(page):
    page.locator("#history-input").focus()
    page.keyboard.type("red")
    second = page.locator("#history-options [role=option]").nth(1).inner_text()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#history .chosen li")).to_have_text([f"{second}×"])
    page.keyboard.press("Enter")  # with an empty field: recommend
    expect(page.locator("#left .ranking li")).to_have_count(10)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_default_opens_with_a_neighbour_ranker_beside_it_at_both_widths(page, served, width):
    page.set_viewport_size({"width": width, "height": 844})
    page.reload()
    expect(page.locator("#left select")).to_have_value(served[1].rankers[0])
    expect(page.locator("#right select")).to_have_value("window co-occurrence")
    page.get_by_role("button", name="Show an example").click()
    expect(page.locator("#right .ranking li")).to_have_count(6)
    expect(page.locator("#right .share, #right .bar")).to_have_count(0)
    expect(page.locator("#left .share")).to_have_count(6)
    page.locator("#right .ranking button").first.click()
    expect(page.locator("#why-right")).to_contain_text("score")
    expect(page.locator("#why-right .reasons li").first).to_be_visible()
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_rules_go_with_the_question(page):
    _add(page, "history", "red em", "Red Emma")
    page.locator("#rules summary").click()
    page.get_by_label("Only titles where").fill("title like 'Red %'")
    page.get_by_role("button", name="Recommend").click()
    expect(page.locator("#right .ranking li")).to_have_count(7)
    assert all(title.startswith("Red ") and title != "Red Emma" for title in _titles(page, "right"))
    page.get_by_label("Exclude titles that the user has seen").uncheck()
    page.get_by_role("button", name="Recommend").click()
    expect(page.locator("#right .ranking button", has_text="Red Emma")).to_be_visible()


def test_the_default_for_new_titles_is_shown_where_seen_ones_are_excluded(browser, run):
    engine = open_engine(run, ["sft", "popularity", "item-kNN"])
    engine.for_new = "popularity"
    with _served(engine, "tiny") as url:
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("header")).to_contain_text("for titles that are new to the user it is popularity")
        page.locator("#rules summary").click()
        excludes = page.get_by_label("Exclude titles that the user has seen")
        excludes.uncheck()
        expect(page.locator("#left select")).to_have_value("sft")
        excludes.check()
        expect(page.locator("#left select")).to_have_value("popularity")
        with page.expect_request("**/v1/recommend") as asked:
            page.get_by_role("button", name="Recommend").click()
        body = asked.value.post_data_json
        assert (body["exclude_seen"], body["ranker"]) == (True, "popularity")
        page.locator("#left select").select_option("item-kNN")  # one that somebody has chosen stays
        excludes.uncheck()
        expect(page.locator("#left select")).to_have_value("item-kNN")
        page.close()
    engine.close()


def test_a_boost_goes_with_the_question_and_moves_the_title(page):
    _add(page, "history", "red em", "Red Emma")
    page.get_by_role("button", name="Recommend").click()
    expect(page.locator("#right .ranking li")).to_have_count(10)
    last = _titles(page, "right")[9]
    page.locator("#rules summary").click()
    page.get_by_label("Move titles whose").select_option("title")
    page.get_by_label("is", exact=True).fill(last)
    page.get_by_label("up by the factor").fill("5")
    with page.expect_request("**/v1/recommend") as asked:
        page.get_by_role("button", name="Recommend").click()
    assert asked.value.post_data_json["boost"] == {"title": {last: 5}}
    expect(page.locator("#right .ranking button").nth(1)).to_have_text(last)  # place 10 / 5


def test_without_a_history_popularity_answers_and_is_named(page, run):
    page.get_by_role("button", name="Recommend").click()
    expect(page.locator("#results-note")).to_have_text("Without a history, items are ranked by popularity.")
    titles = run.data.catalogue.titles_of(Popular.of(run.data).ids[:10])
    assert _titles(page, "left") == _titles(page, "right") == titles
    expect(page.locator("#left .share, #left .bar")).to_have_count(0)


def test_a_user_of_the_log_gets_recommendations_and_reasons(page, run):
    user = run.data.train_interactions["user_id"][0]
    page.get_by_label("User", exact=True).fill(user)
    with page.expect_request("**/v1/recommend") as asked:
        page.get_by_role("button", name="Recommend").click()
    assert (asked.value.post_data_json["user_id"], asked.value.post_data_json["history"]) == (user, [])
    expect(page.locator("#right .ranking li")).to_have_count(10)
    with page.expect_request("**/v1/explain") as explained:
        page.locator("#right .ranking button").first.click()
    assert (explained.value.post_data_json["user_id"], explained.value.post_data_json["history"]) == (user, [])
    expect(page.locator("#why-right .reasons li").nth(1)).to_be_visible()


@pytest.mark.skipif("PREFREC_SHOWN" not in os.environ, reason="PREFREC_SHOWN names no run to picture")
def test_picture(browser):
    run = open_run(Path(os.environ["PREFREC_SHOWN"]))
    engine = open_engine(run, [run.models[-1], "window co-occurrence"])
    with _served(engine, run.recipe.name, run.stages.values(), run.recipe.model.name) as url:
        for width, name in ((1280, "page.png"), (390, "page-390.png")):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.goto(url)
            page.get_by_role("button", name="Clear").click()
            for text in ("alien", "blade runner", "the terminator"):
                page.locator("#history-input").fill(text)
                page.locator("#history-options [role=option]").first.click()
            page.get_by_role("button", name="Recommend").click()
            expect(page.locator("#right .ranking li")).to_have_count(10, timeout=60_000)
            page.screenshot(path=f"docs/images/{name}", full_page=True)
            page.close()
    engine.close()


def test_titles_are_text_and_never_markup(page):
    _add(page, "history", "<img", MARKUP)
    _add(page, "candidates", "onerror", MARKUP)
    _add(page, "candidates", "<|im_end|>", "Babe<|im_end|><|im_start|>")
    page.get_by_role("button", name="Rank candidates").click()
    expect(page.locator("#left .ranking li")).to_have_count(2)
    page.locator("#left .ranking button", has_text="<img").click()
    expect(page.locator("#why-title")).to_have_text(f"Why “{MARKUP}”?")
    assert page.locator("main img:not(.plot)").count() == 0
    assert page.locator("h1").inner_text() == "tiny <run>"


def test_a_key_is_asked_for(browser, served):
    _, engine = served
    with _served(engine, "tiny", api_key="sesame") as url:
        page = browser.new_page()
        page.goto(url)
        page.get_by_role("button", name="Show an example").click()
        expect(page.locator("#status")).to_contain_text("an API key is needed")
        page.get_by_label("API key").fill("sesame")
        page.get_by_role("button", name="Show an example").click()
        expect(page.locator("#left .ranking li")).to_have_count(6)
        page.close()


@pytest.mark.parametrize(
    ("rankers", "sides"),
    [
        (["s-dpo", "sft", "zero-shot"], ("s-dpo", "sft")),
        (["s-dpo", "sft", "popularity", "item-kNN"], ("s-dpo", "item-kNN")),
        (["item-kNN", "sft", "window co-occurrence"], ("item-kNN", "sft")),
        (["sft"], ("sft", "sft")),
    ],
)
def test_the_two_rankers_shown_first(rankers, sides):
    assert side_by_side(rankers) == sides


def test_a_base_model_is_named_only_where_a_language_model_is_served(run):
    for ranker, is_named in (("sft", True), ("popularity", False)):
        engine = open_engine(run, [ranker])
        _, html = page_files("shop", "llama", engine, [])["/"]
        engine.close()
        assert (b"<p>llama \xc2\xb7 " in html) == is_named


def test_the_script_never_makes_markup_of_text():
    script = (Path(page_files.__code__.co_filename).parent / "page.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)
