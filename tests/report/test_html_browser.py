"""The page in a browser: it shows the report's numbers, fits, can be read, and fetches nothing."""

import json
import shutil
from urllib.parse import quote

import numpy as np
import pytest
from selenium import webdriver
from test_html import check_shown

from onnx_rnn_prune.cli import run
from onnx_rnn_prune.report.html import to_html
from reports import pruned, unknown, whole

pytestmark = pytest.mark.browser

FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "hide-scrollbars",
)
WIDTHS = (390, 1440)
SHOWN = """
    return Array.from(document.querySelectorAll('[data-key]'), found => {
        const given = {};
        for (const one of found.attributes) given[one.name] = one.value;
        return [given, found.textContent];
    });
"""
# Numbers that stand where they are shown, but say not where they come from.
UNMARKED = """
    return Array.from(document.querySelectorAll('td.number, .tile .value')).filter(
        cell => !cell.querySelector('[data-key]')).map(cell => cell.outerHTML);
"""
FETCHING = """
    const found = 'script, iframe, object, embed, image, [src], [srcset], [href]';
    return Array.from(document.querySelectorAll(found)).filter(
        one => !(one.getAttribute('href') || '').startsWith('data:')).map(one => one.outerHTML);
"""
# Words that lie outside the picture that they belong to.
STRAY = """
    const stray = [];
    for (const picture of document.querySelectorAll('svg')) {
        const room = picture.getBoundingClientRect();
        for (const words of picture.querySelectorAll('text')) {
            const own = words.getBoundingClientRect();
            if (own.left < room.left - 1 || own.right > room.right + 1
                || own.top < room.top - 1 || own.bottom > room.bottom + 1)
                stray.push(words.textContent);
        }
    }
    return stray;
"""
# Sentences in tables that reach off the screen, and the rows that they make higher.
SENTENCES = """
    return Array.from(document.querySelectorAll('td.long > div')).filter(one => {
        const own = one.getBoundingClientRect(), row = one.closest('tr').firstElementChild;
        return own.left < 0 || own.right > innerWidth
            || row.getBoundingClientRect().bottom > own.top;
    }).map(one => one.textContent);
"""
# The least contrast of any text with the page, after WCAG 2: (L1 + 0.05) / (L2 + 0.05).
CONTRAST = """
    const light = colour => {
        const part = colour.match(/[\\d.]+/g).slice(0, 3).map(n => n / 255)
            .map(n => n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4);
        return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
    };
    const page = light(getComputedStyle(document.body).backgroundColor);
    const words = document.querySelectorAll('p, h1, h2, td, th, dt, dd, li, text');
    const ratios = Array.from(words, one => {
        const style = getComputedStyle(one);
        const own = light(one.tagName == 'text' ? style.fill : style.color);
        return (Math.max(own, page) + 0.05) / (Math.min(own, page) + 0.05);
    });
    return [page, Math.min(...ratios)];
"""
PLACES = """
    return Array.from(document.querySelectorAll(arguments[0]), one => {
        const box = one.getBoundingClientRect();
        return [one.dataset.key, box.x + box.width / 2, box.y + box.height / 2, box.height];
    });
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in [*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    opened = webdriver.Chrome(options=options, service=service)
    yield opened
    opened.quit()


@pytest.fixture
def show(browser, tmp_path):
    """Opens a page, as wide as a screen and in its colours; and gives the browser."""

    def show(path, width=1440, colours="light"):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = [{"name": "prefers-color-scheme", "value": colours}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})
        browser.get(f"file://{quote(str(path))}")
        return browser

    return show


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "whole.html"
    path.write_text(to_html(whole()), "utf-8")
    return path


def test_numbers_are_those_of_the_report(show, model, clips, tmp_path):
    page, values = tmp_path / "page.html", tmp_path / "report.json"
    options = ["-o", tmp_path / "o.onnx", "--data", clips, "--html", page, "--json", values]
    stages = ["--sparsify", "50%"]
    assert run([str(each) for each in ["prune", model, *options, *stages]]) == 0
    browser = show(page)
    check_shown(json.loads(values.read_text("utf-8")), browser.execute_script(SHOWN))
    assert browser.execute_script(UNMARKED) == []


@pytest.mark.parametrize("report", [whole(), unknown(), pruned()])
def test_made_up_numbers_are_those_of_the_report(show, tmp_path, report):
    path = tmp_path / "page.html"
    path.write_text(to_html(report), "utf-8")
    browser = show(path)
    check_shown(report, browser.execute_script(SHOWN))
    assert browser.execute_script(UNMARKED) == []
    assert browser.get_log("browser") == []


def test_nothing_is_fetched(show, page):
    browser = show(page)
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.execute_script(FETCHING) == []
    text = page.read_text("utf-8")
    assert "url(" not in text and "@import" not in text and "@font-face" not in text
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits(show, page, width):
    browser = show(page, width)
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(STRAY) == []


def test_sentences_are_on_the_screen_and_make_no_row_high(show, page):
    browser = show(page, 390)
    assert browser.execute_script(SENTENCES) == []
    browser.execute_script("document.querySelector('.scroll').scrollLeft = 200")
    assert browser.execute_script(SENTENCES) == []


def test_it_can_be_read_by_day_and_night(show, page):
    day, least = show(page).execute_script(CONTRAST)
    assert day > 0.9 and least > 4.5
    night, least = show(page, colours="dark").execute_script(CONTRAST)
    assert night < 0.05 and least > 4.5


def test_plots_show_what_they_stand_for(show, page):
    report, browser = whole(), show(page)
    bars = browser.execute_script(PLACES, "rect[data-key*='logits.histogram']")
    counts = report["drift_details"]["logits"]["histogram"]["counts"]
    shares = [count / counts[20] for count in counts]
    assert [bar[3] / bars[20][3] for bar in bars] == pytest.approx(shares, abs=0.005)
    assert bars == sorted(bars, key=lambda bar: bar[1])
    points = browser.execute_script(PLACES, "circle[data-key^='search.candidates']")
    rows = report["search"]["candidates"]
    shown = sorted((int(key.split(".")[2]), x, y) for key, x, y, _ in points)
    assert [number for number, _, _ in shown] == list(range(len(rows)))
    check_alike([x for _, x, _ in shown], [row["ms"] for row in rows])
    check_alike([-y for _, _, y in shown], [row["quality"] for row in rows])
    errors = browser.execute_script(PLACES, "circle[data-key*='logits.over_time']")
    over_time = report["drift_details"]["logits"]["over_time"]
    check_alike([x for _, x, _, _ in errors], over_time["steps"])
    check_alike([-y for _, _, y, _ in errors], over_time["rmse"])


def check_alike(places, values):
    """Whether places lie as far from one another as values do, to what a screen can show."""
    shares = [(np.array(each) - min(each)) / np.ptp(each) for each in (places, values)]
    assert np.allclose(*shares, atol=0.01)
