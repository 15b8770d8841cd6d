"""The report in a real browser: sorting, colours, narrow screens, paper, and no errors.

Skipped unless Selenium (the extra `browser`), Chromium or Chrome, and its driver are installed.
"""

import shutil

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("selenium")

import sample_report
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from aadml_jax.reports.page import Report
from aadml_jax.reports.statistics import MeanAndSpread, PairedDifference
from aadml_jax.reports.tables import Table

_BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (_BROWSER and _DRIVER), reason="Chromium or its driver is not installed"
)
_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Texts, numbers of every kind, ties and gaps, in no column's order.
ROWS = [
    ["item 10", MeanAndSpread(0.7, 0.1, 5), PairedDifference(-0.5, -0.6, 0.1, 5), 2],
    ["item 9", None, PairedDifference(0.003, -0.001, 0.007, 5), 1],
    ["Zebra", 0.0004, "–", 2],
    ["apple", MeanAndSpread(-0.2, None, 1), PairedDifference(-0.01, None, None, 1), 1],
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    report = sample_report.sample_report()
    report.section("Sorting").table(Table("Sorted", ["name", "MAP", "gain", "n"], ROWS))
    return report.write(tmp_path_factory.mktemp("report")).as_uri()


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = _BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    profile = tmp_path_factory.mktemp("profile")
    for argument in (*_ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(shared_browser, page):
    """The page, freshly loaded on a wide light screen; a line in the console fails the test."""
    show(shared_browser, width=1200)
    prefer(shared_browser, "light")
    shared_browser.get(page)
    shared_browser.get_log("browser")
    shared_browser.refresh()
    yield shared_browser
    assert shared_browser.get_log("browser") == []


def show(browser, width):
    settings = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", settings)


def prefer(browser, scheme, medium=""):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    settings = {"features": [feature], "media": medium}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", settings)


def sorted_table(browser):
    return browser.find_elements(By.TAG_NAME, "table")[2]


def names(browser):
    cells = sorted_table(browser).find_elements(By.CSS_SELECTOR, "tbody tr > :first-child")
    return [cell.text for cell in cells]


def headers(browser):
    return sorted_table(browser).find_elements(By.CSS_SELECTOR, "thead button")


def orders(browser):
    columns = sorted_table(browser).find_elements(By.CSS_SELECTOR, "thead th")
    return [column.get_attribute("aria-sort") for column in columns]


def color(browser, selector, name):
    element = browser.find_element(By.CSS_SELECTOR, selector)
    return element.value_of_css_property(name)


@pytest.mark.parametrize(
    ("column", "ascending", "descending"),
    [
        (0, "apple, item 9, item 10, Zebra", "Zebra, item 10, item 9, apple"),
        (1, "apple, Zebra, item 10, item 9", "item 10, Zebra, apple, item 9"),  # a gap is last
        (2, "item 10, apple, item 9, Zebra", "item 9, apple, item 10, Zebra"),
        (3, "item 9, apple, item 10, Zebra", "item 10, Zebra, item 9, apple"),  # ties keep order
    ],
)
def test_a_click_sorts_and_another_turns_the_order(browser, column, ascending, descending):
    assert names(browser) == ["item 10", "item 9", "Zebra", "apple"]
    assert orders(browser) == ["none"] * 4
    headers(browser)[column].click()
    assert names(browser) == ascending.split(", ")
    assert orders(browser)[column] == "ascending"
    headers(browser)[column].click()
    assert names(browser) == descending.split(", ")
    assert orders(browser)[column] == "descending"
    assert orders(browser).count("none") == 3


@pytest.mark.parametrize("key", [Keys.ENTER, Keys.SPACE])
def test_keys_sort_too(browser, key):
    headers(browser)[0].send_keys(key)
    assert names(browser) == ["apple", "item 9", "item 10", "Zebra"]


def test_one_table_leaves_the_others_alone(browser):
    before = browser.find_elements(By.TAG_NAME, "table")[0].text
    headers(browser)[0].click()
    assert browser.find_elements(By.TAG_NAME, "table")[0].text == before


LIGHT, DARK = "rgba(255, 255, 255, 1)", "rgba(21, 24, 28, 1)"


def test_button_changes_colours_of_page_and_figures(browser):
    button = browser.find_element(By.ID, "theme")
    letters = "#training\\.text_1 g"
    ink = color(browser, letters, "fill")
    assert color(browser, "html", "background-color") == LIGHT
    assert button.text == "Dark colours"
    button.click()
    assert color(browser, "html", "background-color") == DARK
    assert color(browser, letters, "fill") != ink
    assert button.text == "Light colours"
    button.click()
    assert color(browser, "html", "background-color") == LIGHT
    assert color(browser, letters, "fill") == ink


def test_colours_follow_the_system_until_the_button_says_otherwise(browser):
    prefer(browser, "dark")
    assert color(browser, "html", "background-color") == DARK
    button = browser.find_element(By.ID, "theme")
    assert button.text == "Light colours"
    button.click()
    assert color(browser, "html", "background-color") == LIGHT


def test_paper_is_white_and_shows_what_is_folded(browser):
    browser.find_element(By.ID, "theme").click()
    prefer(browser, "dark", medium="print")
    assert color(browser, "html", "background-color") == LIGHT
    assert not browser.find_element(By.ID, "theme").is_displayed()
    folded = browser.find_elements(By.TAG_NAME, "details")
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert [details.get_attribute("open") for details in folded] == ["true", "true"]
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert [details.get_attribute("open") for details in folded] == [None, None]


@pytest.mark.parametrize("width", [320, 400, 1200])
def test_the_page_never_scrolls_sideways(browser, width):
    show(browser, width)
    for details in browser.find_elements(By.TAG_NAME, "details"):
        details.find_element(By.TAG_NAME, "summary").click()
    page_scrolls, table_scrolls = browser.execute_script(
        "return [document.documentElement, document.querySelector('.box')]"
        ".map(box => box.scrollWidth > box.clientWidth)"
    )
    assert not page_scrolls
    assert table_scrolls == (width < 1200)  # the wide one does, in its box


def test_identifiers_of_figures_lead_to_their_own_parts(browser):
    strays = browser.execute_script(
        """
        const strays = [];
        for (const svg of document.querySelectorAll("svg")) {
          for (const part of svg.querySelectorAll("[clip-path]")) {
            const name = part.getAttribute("clip-path").slice(5, -1);
            if (document.getElementById(name).closest("svg") !== svg) strays.push(name);
          }
        }
        return [document.querySelectorAll("svg [clip-path]").length, strays];
        """
    )
    assert strays[0] > 20
    assert strays[1] == []


def test_policy_keeps_the_page_from_loading_anything(browser):
    loaded = browser.execute_async_script(
        "const done = arguments[0];"
        "const image = new Image();"
        "image.onload = () => done('loaded'); image.onerror = () => done('refused');"
        "addEventListener('securitypolicyviolation', event => done(event.effectiveDirective));"
        "image.src = 'figures/training.png';"
    )
    assert loaded == "img-src"
    (line,) = browser.get_log("browser")  # the browser's word on it
    assert "Content Security Policy" in line["message"]


def test_page_reads_without_scripts(page, tmp_path):
    text = Report("t").write(tmp_path).read_text()
    assert 'id="theme" hidden' in text  # a button that could do nothing is not shown
