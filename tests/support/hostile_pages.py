"""Texts that try to become code in a page, and a look at the page in a real browser."""

import shutil
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_BROWSER = "no Chromium here: apt-get install chromium"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)

BREAK = "document.body.dataset.broken=1"
TEXTS = [
    f"<script>{BREAK}</script>",
    f'<img src=x onerror="{BREAK}">',
    f'"><svg onload="{BREAK}">',
    f"' onmouseover='{BREAK}' x='",
    f'" autofocus tabindex=1 onfocus="{BREAK}" x="',
    f"</style></title></svg></pre><script>{BREAK}</script>",
    f'<a href="javascript:{BREAK}">Heat</a>',
    f'<iframe srcdoc="<script>parent.{BREAK}</script>"></iframe>',
    "{{ 7 * 191 }}{% for x in range(3) %}",
    f"--><script>{BREAK}</script><!--",
]
"""Each would set a mark on the page's body, or write 1337."""

SHORT = "<i onclick=x()>"
"""For labels of plots, which have no room for more."""


def text_of_unbroken(file: Path) -> str:
    """The text of a page, after a look at it: no script of these texts ran, and none of them became an element."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        dialogs: list[str] = []
        page.on("dialog", lambda d: (dialogs.append(d.message), d.dismiss()))
        page.goto(file.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        page.mouse.move(300, 300)
        handlers = "[...e.attributes].some(a => a.name.startsWith('on') || /^\\s*javascript:/i.test(a.value))"
        broken = page.evaluate(f"[...document.querySelectorAll('*')].filter(e => {handlers}).map(e => e.outerHTML)")
        marked = page.evaluate("document.body.dataset.broken || null")
        elements = page.locator("script, iframe, main img:not(.plot), a[href^=javascript]").count()
        text = page.locator("body").inner_text()
        browser.close()
    assert (broken, marked, elements, dialogs) == ([], None, 0, [])
    assert "1337" not in text
    return text
