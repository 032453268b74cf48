"""The report in a browser: sorted, filtered, used by keyboard, dark, on a phone, printed, without scripts."""

import base64

import pytest
from axe_core_python.selenium import Axe
from recorded_sweeps import HOSTILE
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import element_to_be_clickable
from selenium.webdriver.support.ui import Select, WebDriverWait

CHUNK = 100  # rows that the page makes at a time
SECONDS = 10.0
PHONE = 390  # pixels
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


def heading(browser: Chrome, name: str):
    return browser.find_element(By.CSS_SELECTOR, f"#rows th[data-name={name}]")


def sort_by(browser: Chrome, name: str) -> None:
    heading(browser, name).find_element(By.TAG_NAME, "button").click()


def column(browser: Chrome, name: str) -> list[str]:
    """The cells of a column of the rows that are in the page."""
    script = """
        const place = document.querySelector(`#rows th[data-name=${arguments[0]}]`).cellIndex;
        return [...document.querySelectorAll("#rows tbody tr")].map((row) => row.cells[place].textContent);
    """
    return browser.execute_script(script, name)


def count(browser: Chrome) -> str:
    return browser.find_element(By.ID, "count").text


def label(browser: Chrome, words: str):
    """What can be filled in under a label."""
    path = f"//form[@id='filters']//label[starts-with(., '{words}')]//*[self::input or self::select]"
    return browser.find_element(By.XPATH, path)


def search(browser: Chrome, words: str, expected: str) -> None:
    field = label(browser, "Rows with these words")
    field.clear()
    field.send_keys(words)
    WebDriverWait(browser, SECONDS).until(lambda _: count(browser) == expected)


def style(browser: Chrome, selector: str, name: str) -> str:
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    return browser.execute_script(script, selector, name)


def violations(browser: Chrome) -> list[str]:
    found = Axe().run(browser, options={"runOnly": WCAG})["violations"]
    return [f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"]]


def test_headings_sort_numbers_and_words_and_empty_cells_come_last(look, study_report):
    browser = look(study_report)
    before = column(browser, "SA50")
    sort_by(browser, "SA50")
    values = [float(text) for text in column(browser, "SA50") if text]
    assert values == sorted(values)
    assert column(browser, "SA50")[len(values) :] == [""] * 4
    assert heading(browser, "SA50").get_attribute("aria-sort") == "ascending"
    assert count(browser) == "14 rows, sorted by SA50, ascending"
    sort_by(browser, "SA50")
    assert [float(text) for text in column(browser, "SA50") if text] == sorted(values, reverse=True)
    assert column(browser, "SA50")[len(values) :] == [""] * 4
    assert heading(browser, "SA50").get_attribute("aria-sort") == "descending"
    sort_by(browser, "SA50")
    assert column(browser, "SA50") == before
    assert heading(browser, "SA50").get_attribute("aria-sort") is None
    sort_by(browser, "strategy")
    assert column(browser, "strategy")[-1] == "qlora"
    assert len(browser.find_elements(By.CSS_SELECTOR, "[aria-sort]")) == 1


def test_numbers_of_images_sort_as_numbers(look, study_report):
    browser = look(study_report)
    sort_by(browser, "n_images")
    assert list(dict.fromkeys(column(browser, "n_images"))) == ["0", "1", "5", "10", ""]


def test_rows_are_filtered_by_words_and_by_choices_and_their_number_is_said(look, study_report):
    browser = look(study_report)
    assert browser.find_element(By.ID, "count").get_attribute("role") == "status"
    search(browser, "LoRA box", "2 of 14 rows")
    assert column(browser, "strategy") == ["lora", "lora"]
    Select(label(browser, "images")).select_by_visible_text("5")
    assert count(browser) == "1 of 14 rows"
    search(browser, "nothing like this", "0 of 14 rows")
    assert column(browser, "strategy") == []
    browser.find_element(By.XPATH, "//form//button[.='Reset filters']").click()
    assert count(browser) == "14 rows"
    Select(label(browser, "state")).select_by_visible_text("failed")
    assert column(browser, "status") == ["failed", "failed"]
    assert [option.text for option in Select(label(browser, "images")).options] == [
        "all",
        "0",
        "1",
        "5",
        "10",
    ]


def test_hostile_names_are_text_and_nothing_of_them_runs(look, study_report):
    browser = look(study_report)
    search(browser, "<script>", "2 of 14 rows")
    assert HOSTILE in column(browser, "strategy")
    assert browser.title == "study – refsam report"
    assert browser.find_elements(By.CSS_SELECTOR, "main b > b, td b, img[src=x]") == []
    assert len(browser.find_elements(By.TAG_NAME, "script")) == 2


def test_columns_can_be_added_and_taken_away(look, study_report):
    browser = look(study_report)
    browser.find_element(By.XPATH, "//form//summary").click()
    browser.find_element(By.XPATH, "//fieldset/label[.='run']/input").click()
    browser.find_element(By.XPATH, "//fieldset/label[.='mSA']/input").click()
    assert "vit_b-full-n5" in column(browser, "run_id")
    assert browser.find_elements(By.CSS_SELECTOR, "#rows th[data-name=mSA]") == []
    widths = browser.execute_script(
        "return [...document.querySelectorAll('#rows tr')].map((r) => r.cells.length)"
    )
    assert len(set(widths)) == 1


def test_a_failed_row_leads_to_the_end_of_its_log(look, study_report):
    browser = look(study_report)
    Select(label(browser, "state")).select_by_visible_text("failed")
    link = browser.find_element(By.CSS_SELECTOR, "#rows tbody a")
    log = browser.find_element(
        By.CSS_SELECTOR, link.get_attribute("href")[link.get_attribute("href").index("#") :]
    )
    assert not log.is_displayed()
    link.click()
    WebDriverWait(browser, SECONDS).until(lambda _: log.is_displayed())
    assert "last line" in log.text


def test_everything_can_be_done_with_the_keyboard(look, study_report):
    browser = look(study_report)
    keys = ActionChains(browser)
    keys.send_keys(Keys.TAB).perform()
    skip = browser.switch_to.active_element
    assert skip.text == "To the content"
    assert skip.rect["y"] >= 0  # it is in sight once it has the focus
    keys.send_keys(Keys.ENTER).perform()
    assert browser.switch_to.active_element.get_attribute("id") == "main"
    button = heading(browser, "SA50").find_element(By.TAG_NAME, "button")
    for _ in range(80):
        keys.send_keys(Keys.TAB).perform()
        if browser.switch_to.active_element == button:
            break
    assert browser.switch_to.active_element == button
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outline")
    assert "3px" in outline
    keys.send_keys(Keys.ENTER).perform()
    assert heading(browser, "SA50").get_attribute("aria-sort") == "ascending"
    keys.send_keys(Keys.SPACE).perform()
    assert heading(browser, "SA50").get_attribute("aria-sort") == "descending"
    assert browser.switch_to.active_element == button  # the focus stays where it was


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, PHONE])
def test_what_axe_checks_of_wcag_aa_holds(look, study_report, dark, width):
    browser = look(study_report, width=width, dark=dark)
    browser.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    sort_by(browser, "SA50")
    assert violations(browser) == []


def test_in_dark_mode_page_and_figures_are_dark(look, study_report):
    look(study_report)
    light = style(look(study_report), "body", "backgroundColor")
    browser = look(study_report, dark=True)
    assert style(browser, "body", "backgroundColor") != light
    shown = [
        image for image in browser.find_elements(By.CSS_SELECTOR, ".figures img") if image.is_displayed()
    ]
    assert {image.get_attribute("class") for image in shown} == {"dark wide"}
    assert len(shown) == len(browser.find_elements(By.CSS_SELECTOR, ".figures figure"))


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_the_page_is_no_wider_than_the_screen(look, study_report, dark):
    browser = look(study_report, width=PHONE, dark=dark)
    browser.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE
    assert browser.execute_script("return window.innerWidth") == PHONE
    assert style(browser, f".figures .{'dark' if dark else 'light'}.narrow", "display") == "block"


def test_printed_everything_is_open_light_and_without_controls(look, study_report):
    browser = look(study_report, dark=True, media="print")
    assert style(browser, "nav", "display") == "none"
    assert style(browser, "#filters", "display") == "none"
    assert style(browser, "body", "backgroundColor") == "rgb(255, 255, 255)"
    assert style(browser, ".figures .light.wide", "display") == "block"
    assert style(browser, ".figures .dark.wide", "display") == "none"
    closed = "const log = document.querySelector('details:not([open]) .log'); return log.checkVisibility()"
    assert browser.execute_script(closed)
    document = base64.b64decode(browser.print_page())
    assert document.startswith(b"%PDF-")
    assert len(document) > 50_000


def test_without_scripts_the_table_is_there_and_a_sentence_says_what_is_not(look, large_report):
    browser = look(large_report, scripts=False)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#rows tbody tr")) == CHUNK
    assert "all of them are in results.csv" in browser.find_element(By.CSS_SELECTOR, "#all .notice").text
    assert not browser.find_element(By.ID, "filters").is_displayed()
    assert count(browser) == "5,000 rows, of which the first 100 are shown"


def test_five_thousand_rows_are_sorted_as_a_whole_and_made_as_they_are_looked_at(look, large_report):
    browser = look(large_report)
    sort_by(browser, "SA50")
    assert len(column(browser, "SA50")) == CHUNK
    assert column(browser, "SA50")[:10] == [f"{place / 5000:.3f}" for place in range(10)]
    sort_by(browser, "SA50")
    assert column(browser, "SA50")[0] == "1.000"
    assert count(browser) == "5,000 rows, sorted by SA50, descending"
    assert browser.find_element(By.ID, "rows").get_attribute("aria-rowcount") == "5001"
    region = browser.find_element(By.ID, "results")
    for _ in range(3):
        known = len(column(browser, "SA50"))
        browser.execute_script("arguments[0].scrollTop = arguments[0].scrollHeight", region)
        WebDriverWait(browser, SECONDS).until(lambda _, known=known: len(column(browser, "SA50")) > known)
    more = browser.find_element(By.CSS_SELECTOR, "#more button")
    known = len(column(browser, "SA50"))
    WebDriverWait(browser, SECONDS).until(element_to_be_clickable(more))
    browser.execute_script("arguments[0].click()", more)
    assert len(column(browser, "SA50")) == known + CHUNK
    values = [float(text) for text in column(browser, "SA50")]
    assert values == sorted(values, reverse=True)
    search(browser, "run-04999", "1 of 5,000 rows, sorted by SA50, descending")
