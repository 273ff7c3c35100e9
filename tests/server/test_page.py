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
from prefrec_server.bodies import ExplainRequest, RankRequest
from prefrec_server.page import VERBS, page_files, side_by_side
from prefrec_server.server import open_engine
from served_run import HOSTILE, MARKUP

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
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
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
    """A fresh page, opened; an error on its console fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("dialog", lambda d: (wrong.append(f"dialog {d.message}"), d.dismiss()))
    _open(page, served[0])
    yield page
    context.close()
    assert wrong == []


def _open(page, url):
    """Open a page and wait for its first answer."""
    page.goto(url)
    expect(page.locator("#best-note")).to_contain_text("Ranked by")


@pytest.fixture
def bench(page):
    """The page's view that compares rankers, with SFT beside S-DPO."""
    page.get_by_role("tab", name="Compare rankers").click()
    page.locator("#left select").select_option("sft")
    page.locator("#right select").select_option("s-dpo")
    return page


def _choose(page, text, title):
    """Choose a title to start from."""
    page.locator("#who-input").fill(text)
    page.locator("#who-options [role=option]", has_text=title).first.click()
    expect(page.locator("#titles li").last).to_contain_text(title)


def _add(page, text, title):
    page.locator("#candidates-input").fill(text)
    page.locator("#candidates-options [role=option]", has_text=title).first.click()
    expect(page.locator("#candidates .chosen li").last).to_contain_text(title)


def _choose_customer(page, user):
    page.locator("#who-input").fill(user)
    page.locator("#who-options [role=option]", has_text="customer").first.click()
    expect(page.locator("#customer b")).to_have_text(user)


def _titles(page, side):
    return page.locator(f"#{side} .ranking button").all_inner_texts()


def _best(page):
    return page.locator("#best button").all_inner_texts()


@pytest.fixture
def counts(browser, run):
    """A page of a run that is served by window co-occurrence alone, and the engine."""
    engine = open_engine(run, ["window co-occurrence"])
    with _served(engine, "shop") as url:
        page = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
        _open(page, url)
        yield page, engine
        page.close()
    engine.close()


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)])
def test_a_customer_gets_ten_titles_with_reasons_above_the_fold(counts, run, size):
    page, engine = counts
    page.set_viewport_size({"width": size[0], "height": size[1]})
    user = run.data.train_interactions["user_id"][0]
    with page.expect_request("**/v1/recommend") as asked:
        _choose_customer(page, user)
    assert (asked.value.post_data_json["user_id"], asked.value.post_data_json["history"]) == (user, [])
    reasons = page.locator("#best .reason")
    expect(reasons).to_have_count(10)
    expect(reasons.first).to_contain_text("together with")
    request = ExplainRequest(user_id=user, item=_best(page)[0])
    prepared = engine.explain(request)
    explained = prepared.answer(engine.submit(prepared, 60).result(60))
    strongest = max(explained.influences, key=lambda influence: influence.effect)
    expect(reasons.first).to_contain_text(f"{VERBS['movies']} together with {strongest.title}")
    box = page.locator("#best li").last.bounding_box()
    assert box["y"] + box["height"] <= size[1]
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    expect(page.locator("#bench")).to_be_hidden()


def test_the_last_five_titles_of_a_customer_are_one_line_that_unfolds(counts, run):
    page, _ = counts
    items = run.data.catalogue.frame.select("item_id", "title").head(7).to_dicts()

    def with_history(route):
        answer = route.fetch()
        route.fulfill(json=answer.json() | {"history": items})

    page.route("**/v1/recommend", with_history)
    _choose_customer(page, run.data.train_interactions["user_id"][0])
    titles = [item["title"] for item in reversed(items)]
    summary = page.locator("#past summary")
    expect(summary).to_have_text(f"Last 5: {' · '.join(titles[:5])}")
    assert summary.bounding_box()["height"] < 40
    expect(page.locator("#past ol")).to_be_hidden()
    summary.click()
    expect(page.locator("#past ol li")).to_have_text(titles)


def test_a_clicked_title_shows_similar_ones_and_what_moved_it(counts, run):
    page, _ = counts
    expect(page.locator("#item")).to_be_hidden()
    _choose_customer(page, run.data.train_interactions["user_id"][0])
    expect(page.locator("#best .reason").first).to_contain_text("together with")
    title = next(title for title in _best(page) if " " in title and title not in HOSTILE[:2])
    page.locator("#best button", has_text=title).click()
    expect(page.locator("#item-title")).to_have_text(title)
    expect(page.locator("#item")).to_be_focused()
    expect(page.locator("#similar li").first).to_be_visible()
    expect(page.locator("#beside small")).to_have_text("by window co-occurrence")
    expect(page.locator("#moved li").first).to_contain_text("+")
    similar = page.locator("#similar button").first.inner_text()
    page.locator("#similar button").first.click()
    expect(page.locator("#item-title")).to_have_text(similar)


def test_a_typed_title_shows_what_goes_with_it_and_what_is_like_it(page):
    _choose(page, "red em", "Red Emma")
    expect(page.locator("#item-title")).to_have_text("Red Emma")
    expect(page.locator("#similar li").first).to_have_text("Wild Emma")
    expect(page.locator("#best li")).to_have_count(10)
    with page.expect_request("**/v1/recommend") as asked:
        page.get_by_role("button", name="Remove Red Emma").click()
    assert asked.value.post_data_json["history"] == []
    expect(page.locator("#best-note")).to_contain_text("because there is no history")


def test_a_language_model_gives_its_reason_for_a_clicked_title_alone(page):
    explained = []
    page.on("request", lambda r: explained.append(r.url) if r.url.endswith("/v1/explain") else None)
    _choose(page, "red em", "Red Emma")
    expect(page.locator("#item-title")).to_have_text("Red Emma")
    assert explained == []
    page.locator("#best button").first.click()
    expect(page.locator("#moved")).to_be_visible()
    assert len(explained) == 1


def test_choose_rank_and_ask_why(bench, served):
    for text, title in (("red em", "Red Emma"), ("old night", "Old Night")):
        _choose(bench, text, title)
    for text, title in (("wild a", "Wild Alien"), ("i11", "Old Heat"), ("lost days", "Lost Days")):
        _add(bench, text, title)
    bench.get_by_role("button", name="Rank candidates").click()
    expect(bench.locator("#right .ranking li")).to_have_count(3)
    _, engine = served
    for side, ranker in (("left", "sft"), ("right", "s-dpo")):
        body = {"history": ["Red Emma", "Old Night"], "candidates": ["Wild Alien", "Old Heat", "Lost Days"]}
        asked = engine.rank(RankRequest(**body, ranker=ranker))
        answer = asked.answer(engine.submit(asked, 60).result(60))
        assert _titles(bench, side) == [line.title for line in answer.ranking]
        shown = (f"{100 * answer.ranking[0].share:.1f}", "100")
        assert bench.locator(f"#{side} .share").first.inner_text().rstrip("%") in shown
    bench.locator("#right .ranking button", has_text="Lost Days").click()
    expect(bench.locator("#why-title")).to_have_text("Why “Lost Days”?")
    expect(bench.locator("#why-left .reasons li")).to_have_count(2)
    bench.locator("#training summary").click()
    assert bench.locator("#training img.plot").count() == 3


def test_candidates_are_ranked_after_the_history_of_a_customer(bench, run, served):
    user = run.data.train_interactions["user_id"][0]
    _choose_customer(bench, user)
    _add(bench, "wild a", "Wild Alien")
    with bench.expect_request("**/v1/rank") as asked:
        bench.get_by_role("button", name="Rank candidates").click()
    expect(bench.locator("#right .ranking li")).to_have_count(1)
    past = served[1]._logged.past(user).history
    assert [item["item_id"] for item in asked.value.post_data_json["history"]] == [*past]


def test_the_keyboard_alone(page):
    page.locator("#who-input").focus()
    page.keyboard.type("red")
    second = page.locator("#who-options [role=option]").nth(1).inner_text()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#titles li")).to_have_text([f"{second}×"])
    expect(page.locator("#item-title")).to_have_text(second)  # what a typed title is like
    with page.expect_request("**/v1/recommend") as asked:
        page.keyboard.press("Enter")  # with an empty field: recommend again
    assert len(asked.value.post_data_json["history"]) == 1
    expect(page.locator("#best li")).to_have_count(10)
    page.keyboard.press("Backspace")
    expect(page.locator("#titles")).to_be_hidden()
    page.keyboard.type("u")
    page.keyboard.press("Enter")  # before the matches have come: the first of them
    expect(page.locator("#customer")).to_be_visible()
    page.get_by_role("tab", name="Recommended").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Compare rankers")).to_be_focused()
    expect(page.locator("#bench")).to_be_visible()
    expect(page.locator("#answers")).to_be_hidden()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_bench_opens_with_a_neighbour_ranker_beside_the_default_at_both_widths(page, served, width):
    page.set_viewport_size({"width": width, "height": 844})
    page.get_by_role("tab", name="Compare rankers").click()
    expect(page.locator("#left select")).to_have_value(served[1].rankers[0])
    expect(page.locator("#right select")).to_have_value("window co-occurrence")
    page.get_by_role("button", name="Show an example").click()
    expect(page.locator("#right .ranking li")).to_have_count(6)
    expect(page.locator("#right .share, #right .bar")).to_have_count(0)
    expect(page.locator("#left .share")).to_have_count(6)
    page.locator("#right .ranking button").first.click()
    expect(page.locator("#why-right")).to_contain_text("score")
    expect(page.locator("#why-right .reasons li").first).to_be_visible()
    for summary in page.locator("summary:visible").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_rules_go_with_the_question(page):
    _choose(page, "red em", "Red Emma")
    page.locator("#rules summary").click()
    page.get_by_label("Only titles where").fill("title like 'Red %'")
    page.get_by_role("button", name="Recommend").click()
    expect(page.locator("#best li")).to_have_count(7)
    assert all(title.startswith("Red ") and title != "Red Emma" for title in _best(page))
    page.get_by_label("Only what is new to the customer").uncheck()  # a changed filter asks again
    expect(page.locator("#best button", has_text="Red Emma")).to_be_visible()


def test_the_default_for_new_titles_is_shown_where_seen_ones_are_excluded(browser, run):
    engine = open_engine(run, ["sft", "popularity", "item-kNN"])
    engine.for_new = "popularity"
    with _served(engine, "tiny") as url:
        page = browser.new_page()
        _open(page, url)
        expect(page.locator("header")).to_contain_text("new to the customer by popularity")
        page.get_by_role("tab", name="Compare rankers").click()
        page.locator("#rules summary").click()
        excludes = page.get_by_label("Only what is new to the customer")
        excludes.uncheck()
        expect(page.locator("#left select")).to_have_value("sft")
        excludes.check()
        expect(page.locator("#left select")).to_have_value("popularity")
        with page.expect_request("**/v1/recommend") as asked:
            page.get_by_role("button", name="Rank all titles").click()
        body = asked.value.post_data_json
        assert (body["exclude_seen"], body["ranker"]) == (True, "popularity")
        page.locator("#left select").select_option("item-kNN")  # one that somebody has chosen stays
        excludes.uncheck()
        expect(page.locator("#left select")).to_have_value("item-kNN")
        page.close()
    engine.close()


def test_a_boost_goes_with_the_question_and_moves_the_title(page):
    _choose(page, "red em", "Red Emma")
    expect(page.locator("#item-title")).to_have_text("Red Emma")
    last = _best(page)[9]
    page.locator("#rules summary").click()
    page.get_by_label("Move titles whose").select_option("title")
    page.get_by_label("is", exact=True).fill(last)
    page.get_by_label("up by the factor").fill("5")
    with page.expect_request(
        lambda r: r.url.endswith("/v1/recommend") and r.post_data_json["boost"]["title"][last] == 5
    ):
        page.get_by_role("button", name="Recommend").click()
    expect(page.locator("#best button").nth(1)).to_have_text(last)  # place 10 / 5


def test_without_a_history_popularity_answers_and_is_named(bench, run):
    titles = run.data.catalogue.titles_of(Popular.of(run.data).ids[:10])
    expect(bench.locator("#best-note")).to_have_text("Ranked by popularity, because there is no history.")
    bench.get_by_role("button", name="Rank all titles").click()
    expect(bench.locator("#results-note")).to_have_text("Without a history, items are ranked by popularity.")
    assert _titles(bench, "left") == _titles(bench, "right") == titles
    expect(bench.locator("#left .share, #left .bar")).to_have_count(0)
    bench.get_by_role("tab", name="Recommended").click()
    assert _best(bench) == titles


def test_a_user_of_the_log_gets_rankings_and_reasons_on_the_bench(bench, run):
    user = run.data.train_interactions["user_id"][0]
    _choose_customer(bench, user)
    with bench.expect_request("**/v1/recommend") as asked:
        bench.get_by_role("button", name="Rank all titles").click()
    assert (asked.value.post_data_json["user_id"], asked.value.post_data_json["history"]) == (user, [])
    expect(bench.locator("#right .ranking li")).to_have_count(10)
    with bench.expect_request("**/v1/explain") as explained:
        bench.locator("#right .ranking button").first.click()
    assert (explained.value.post_data_json["user_id"], explained.value.post_data_json["history"]) == (user, [])
    expect(bench.locator("#why-right .reasons li").nth(1)).to_be_visible()


@pytest.mark.skipif("PREFREC_SHOWN" not in os.environ, reason="PREFREC_SHOWN names no run to picture")
def test_picture(browser):
    run = open_run(Path(os.environ["PREFREC_SHOWN"]))
    engine = open_engine(run, ["blend"])
    with _served(engine, run.recipe.name, run.stages.values(), run.recipe.model.name) as url:
        for width, name in ((1280, "page.png"), (390, "page-390.png")):
            page = browser.new_page(viewport={"width": width, "height": 844})
            _open(page, url)
            for text, title in (
                ("alien", "Alien"),
                ("blade runner", "Blade Runner"),
                ("the terminator", "The Terminator"),
            ):
                _choose(page, text, title)
            expect(page.locator("#best .reason").last).not_to_be_empty(timeout=60_000)
            if width > 390:
                page.locator("#best button").first.click()
                expect(page.locator("#moved")).to_be_visible()
            page.screenshot(path=f"docs/images/{name}")
            page.close()
    engine.close()


def test_titles_are_text_and_never_markup(bench):
    _choose(bench, "<img", MARKUP)
    _add(bench, "onerror", MARKUP)
    _add(bench, "<|im_end|>", "Babe<|im_end|><|im_start|>")
    bench.get_by_role("button", name="Rank candidates").click()
    expect(bench.locator("#left .ranking li")).to_have_count(2)
    bench.locator("#left .ranking button", has_text="<img").click()
    expect(bench.locator("#why-title")).to_have_text(f"Why “{MARKUP}”?")
    bench.get_by_role("tab", name="Recommended").click()
    expect(bench.locator("#item-title")).to_have_text(MARKUP)
    assert bench.locator("main img:not(.plot)").count() == 0
    assert bench.locator("h1").inner_text() == "tiny <run>"


def test_a_key_is_asked_for(browser, served):
    _, engine = served
    with _served(engine, "tiny", api_key="sesame") as url:
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("#status")).to_contain_text("an API key is needed")
        page.get_by_label("API key").fill("sesame")
        page.get_by_role("button", name="Recommend").click()
        expect(page.locator("#best li")).to_have_count(10)
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
        assert (b"the language model is llama" in html) == is_named


def test_the_script_never_makes_markup_of_text():
    scripts = [*Path(page_files.__code__.co_filename).parent.glob("*.js")]
    assert len(scripts) == 7
    script = "".join(file.read_text(encoding="utf-8") for file in scripts)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)
