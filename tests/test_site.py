"""The site: it builds without a warning, its links lead somewhere, and its formulas are rendered."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hostile_pages import CHROMIUM, NO_BROWSER

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


def test_the_site_builds_without_a_warning(site):
    assert "softmax_dpo_loss" in (site / "reference" / "losses" / "index.html").read_text(encoding="utf-8")


def test_no_page_of_the_site_shows_raw_markup(site):
    pages = {str(p.relative_to(site)): p.read_text(encoding="utf-8") for p in site.rglob("*.html")}
    assert {"experiments/index.html", "contributing/index.html"} <= pages.keys()
    assert [name for name, text in pages.items() if ":::" in text or "--8<--" in text] == []


def test_links_to_files_at_the_root_lead_to_their_pages(site):
    page = (site / "studies" / "index.html").read_text(encoding="utf-8")
    assert 'href="../experiments/"' in page
    assert 'id="section-49"' in (site / "experiments" / "index.html").read_text(encoding="utf-8")


def test_pages_of_results_are_in_the_navigation_and_lead_to_their_data(site):
    page = (site / "experiments" / "49-alignment-on-many-rows" / "index.html").read_text(encoding="utf-8")
    assert "blob/main/lab/results/49-alignment-on-many-rows.json" in page
    assert 'href="../../studies/ablation/"' in page
    assert "<details" in page
    assert "| alignment |" not in page, "the tables in <details> are Markdown that was not rendered"


def test_pages_lead_to_the_one_before_to_the_next_and_to_the_repository(site):
    page = (site / "sdpo" / "index.html").read_text(encoding="utf-8")
    assert '<a href="../reproduce/" class="md-footer__link md-footer__link--next"' in page
    assert '<a href="../other-libraries/" class="md-footer__link md-footer__link--prev"' in page
    assert 'href="https://example.org/prefrec/source"' in page


def test_formulas_of_the_site_are_rendered_offline(site):
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip(NO_BROWSER)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto((site / "sdpo" / "index.html").as_uri())
        formula = page.locator(".katex-display .mfrac").first
        formula.wait_for()
        assert formula.bounding_box()["height"] > 20
        assert page.evaluate("document.fonts.ready.then(() => document.fonts.check('16px KaTeX_Main'))")
        assert page.locator(".katex-error").count() == 0
        assert "\\frac" not in page.locator("article").inner_text()
        browser.close()
