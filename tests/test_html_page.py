"""The HTML page in a real browser: sort, filter, tooltip, links, keyboard, narrow and dark, no foreign script."""

import csv
import re
import shutil
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retbench.pipelines.report import build_report
from retbench.reports.plots import write_plots
from retbench.reports.specialisation_deltas import compute_deltas
from retbench.reports.svg_figures import draw_heat_map, draw_length_curves, draw_query_scatter
from tests.finished_runs import HOSTILE_NAME, write_failed_run, write_finished_run
from tests.test_query_texts import HOSTILE_TEXT, write_licensed_runs

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium here (apt-get install chromium)")
SCORES = np.random.default_rng(2).uniform(0.2, 0.6, 30)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    models = {"base": 0.0, "coder": 0.2, HOSTILE_NAME: -0.1}
    for number, (model, shift) in enumerate(models.items()):
        card = {"parameters": 10**7 * (number + 1), "parent": "base" if model == "coder" else None}
        for task in ("text", "code"):
            cost = {"documents_per_second": 100.0 * (number + 1)}
            more_scores = {"recall_at_100": SCORES / 2 - shift}  # another order
            family = "acme" if model == "coder" else "other"
            write_finished_run(
                root, model, task, SCORES + shift, cost=cost, more_scores=more_scores, family=family, **card
            )
    write_failed_run(root, "lost", "text", error=HOSTILE_NAME)
    return root


@pytest.fixture(scope="module")
def page_file(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(build_report(results).format("html"), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox"]
        )  # needed in CI, which runs as root
        yield chromium
        chromium.close()


class PageVisit:
    """An open page with its console errors and its network requests."""

    def __init__(self, browser: Any, file: Path, **context: Any) -> None:
        self.page = browser.new_context(**context).new_page()
        self.page.set_default_timeout(5000)
        self.noise: list[str] = []
        self.page.on("console", lambda message: self.noise.append(message.text))
        self.page.on("pageerror", lambda error: self.noise.append(str(error)))
        self.page.on("dialog", lambda dialog: self.noise.append(f"dialog {dialog.message}"))
        self.page.on(
            "request", lambda request: self.noise.append(request.url) if "file:" not in request.url[:5] else None
        )
        self.page.goto(file.as_uri())

    def column(self, number: int) -> list[str]:
        cells = self.page.query_selector_all(f"table.board tbody tr:not([hidden]) > :nth-child({number})")
        return [cell.inner_text().strip() for cell in cells]

    def open_queries(self) -> Any:
        """The comparison query by query, opened; the page fills it after the click."""
        self.page.click("details.queries summary")
        part = self.page.locator("details.queries")
        part.locator("tbody tr").first.wait_for()
        return part


@pytest.fixture
def page_visit(browser: Any, page_file: Path) -> Iterator[PageVisit]:
    opened = PageVisit(browser, page_file)
    yield opened
    assert [line for line in opened.noise if not line.startswith("data:")] == []
    opened.page.context.close()


@needs_browser
def test_sorting_by_click_puts_missing_values_last(page_visit: PageVisit) -> None:
    head = page_visit.page.get_by_role("button", name="text", exact=True)
    head.click()
    column = page_visit.column(5)
    numbers = [float(text.rstrip("?*")) for text in column if text != "failed"]
    assert numbers == sorted(numbers, reverse=True)
    assert column[-1] == "failed"
    head.click()
    assert page_visit.column(5)[-1] == "failed"
    assert page_visit.page.query_selector("th[aria-sort=ascending]")


@needs_browser
def test_filter_keeps_rows_with_all_words(page_visit: PageVisit) -> None:
    page_visit.page.keyboard.press("/")
    page_visit.page.keyboard.type("coder bm25")
    assert page_visit.column(2) == ["coder\nbm25"]
    assert page_visit.page.inner_text("#shown") == "1 of 4 rows"


@needs_browser
def test_rows_are_chosen_by_family_and_size(page_visit: PageVisit) -> None:
    page_visit.page.select_option("[data-filter=family]", "acme")
    assert page_visit.column(2) == ["coder\nbm25"]
    assert page_visit.page.locator("figure:visible circle[data-row]:visible").count() == 1  # the chart follows
    page_visit.page.select_option("[data-filter=family]", "")
    page_visit.page.select_option("[data-filter=parameters]", "6e8")
    assert len(page_visit.column(2)) == 3  # the failed row has no size


@needs_browser
def test_another_metric_is_shown_and_sorted(page_visit: PageVisit) -> None:
    averages = page_visit.column(3)
    page_visit.page.select_option("select.metric", "recall_at_100")
    assert page_visit.column(3)[0] == f"{100 * (SCORES.mean() / 2 - 0.2):.2f}"
    assert page_visit.page.locator(".interval").first.is_hidden()
    page_visit.page.select_option("select.metric", "ndcg_at_10")
    assert page_visit.column(3) == averages


@needs_browser
def test_columns_are_chosen(page_visit: PageVisit) -> None:
    page_visit.page.click("details.columns summary")
    page_visit.page.uncheck("details.columns label:has-text('letters') input")
    heads = page_visit.page.locator("table.board thead th:visible").all_inner_texts()
    assert heads[:5] == ["rank", "model", "average", "code", "text"]
    assert "letters" not in heads


@needs_browser
def test_a_leaderboard_is_saved_as_csv(page_visit: PageVisit, tmp_path: Path) -> None:
    with page_visit.page.expect_download() as download:
        page_visit.page.click("button.csv")
    download.value.save_as(tmp_path / "board.csv")
    lines = list(csv.DictReader((tmp_path / "board.csv").read_text().splitlines()))
    assert [line["model"].rpartition(" · ")[0] for line in lines][:2] == ["coder", "base"]
    assert float(lines[0]["average"]) == pytest.approx(100 * (SCORES.mean() + 0.2), abs=0.01)
    assert not any(field.startswith("=") for line in lines for field in line.values())


@needs_browser
def test_a_chart_is_saved_as_a_picture(page_visit: PageVisit, tmp_path: Path) -> None:
    with page_visit.page.expect_download() as download:
        page_visit.page.click("button.png")
    download.value.save_as(tmp_path / "chart.png")
    content = (tmp_path / "chart.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000  # not an empty sheet


@needs_browser
def test_two_rows_are_compared_query_by_query(page_visit: PageVisit) -> None:
    part = page_visit.open_queries()
    assert "B is better on 30 queries, A on 0; 0 are equal." in part.inner_text()
    rows = part.locator("tbody tr")
    assert rows.count() == 30
    query, a, b, difference, first, _ = rows.first.locator("td").all_inner_texts()
    assert float(b) - float(a) == pytest.approx(20, abs=0.2)
    assert (query[0], difference[0], first) == ("q", "+", "d1, d2")


@needs_browser
def test_hostile_texts_of_a_collection_are_shown_as_text(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    results = write_licensed_runs(tmp_path, "mit")
    file.write_text(build_report(results).format("html"), encoding="utf-8")
    opened = PageVisit(browser, file)
    part = opened.open_queries()
    assert "from kettles, licence mit" in part.inner_text()
    assert part.locator("tbody td:first-child").all_inner_texts()[0].splitlines()[0] in ("q1", "q2")
    assert HOSTILE_TEXT in part.locator("td .relevant bdi").all_text_contents()
    assert opened.page.evaluate("window.owned === undefined")
    assert (opened.page.locator("img").count(), part.locator("td b b").count(), opened.noise) == (0, 0, [])


@needs_browser
@pytest.mark.parametrize("rows", [3, 200])
def test_a_phone_shows_rank_model_and_score_first(browser: Any, tmp_path: Path, rows: int) -> None:
    for number in range(rows):
        name = f"model-{number}-with-a-very-long-name-that-ends-differently-{number}"
        write_finished_run(tmp_path / "results", name, "text", np.clip(SCORES + number / 1000, 0, 1))
    file = tmp_path / "report.html"
    file.write_text(build_report(tmp_path / "results").format("html"), encoding="utf-8")
    opened = PageVisit(browser, file, viewport={"width": 390, "height": 800})
    boxes = [opened.page.locator("table.board tbody tr").first.locator("> *").nth(n).bounding_box() for n in range(3)]
    assert all(box and box["x"] + box["width"] <= 390 for box in boxes)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    opened.page.evaluate("document.querySelector('.wide').scrollTop = 1000")
    head = opened.page.locator("table.board thead th").first.bounding_box()
    frame = opened.page.locator(".wide").first.bounding_box()
    assert head
    assert frame
    assert abs(head["y"] - frame["y"]) < 3  # the heads stay in view
    assert f"differently-{rows - 1}" in opened.column(2)[0].replace("\n", "")  # the end of the name is kept


@needs_browser
def test_tooltip_by_mouse_and_by_keyboard(page_visit: PageVisit) -> None:
    link = page_visit.page.locator("tr", has_text="coder").locator("td a").first
    link.hover()
    assert re.search(r"rank 1 of 3, letters a", page_visit.page.inner_text("#tip"))
    page_visit.page.keyboard.press("Escape")
    assert page_visit.page.locator("#tip").is_hidden()
    link.focus()
    assert page_visit.page.locator("#tip").is_visible()


@needs_browser
def test_a_score_links_to_its_record(page_visit: PageVisit) -> None:
    page_visit.page.locator("tr", has_text="coder").locator("td a").first.click()
    record = page_visit.page.locator("details.record[open]")
    record.wait_for()  # the page opens the record after the event of the new URL fragment
    assert record.count() == 1
    assert "retbench run --model coder" in record.inner_text()


@needs_browser
def test_one_chart_is_shown_at_a_time(page_visit: PageVisit) -> None:
    assert page_visit.page.locator("figure:visible").count() == 1
    page_visit.page.select_option("select.cost", "documents_per_second")
    assert page_visit.page.locator("figure:visible").get_attribute("data-cost") == "documents_per_second"


@needs_browser
def test_a_hostile_name_is_text(page_visit: PageVisit) -> None:
    assert page_visit.page.locator("img").count() == 0
    assert any("<img src=x onerror" in text for text in page_visit.column(2))


@needs_browser
def test_an_injected_script_would_not_run(browser: Any, page_file: Path, tmp_path: Path) -> None:
    """The content security policy blocks a script even if a name was not escaped."""
    broken = tmp_path / "broken.html"
    broken.write_text(page_file.read_text().replace("<main>", "<main><script>window.owned = 1</script>"))
    opened = PageVisit(browser, broken)
    assert opened.page.evaluate("window.owned === undefined")
    assert "Content Security Policy" in opened.noise[0]


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_scrolls_the_table_and_not_the_page(browser: Any, page_file: Path, scheme: str) -> None:
    opened = PageVisit(browser, page_file, viewport={"width": 360, "height": 700}, color_scheme=scheme)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
    background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_page_makes_no_request(page_file: Path) -> None:
    text = page_file.read_text()
    assert re.findall(r"""(?:src|href)=["'](?!#|data:)|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", text) == []
    assert "<img" not in text


def test_specialisation_is_the_child_minus_its_parent(results: Path) -> None:
    (board,) = build_report(results).boards
    deltas = [one for one in compute_deltas(board) if one.child.model == "coder"]
    assert [one.task for one in deltas] == [None, "code", "text"]
    assert all(one.difference == pytest.approx(0.2) and one.p_value < 0.001 for one in deltas)


def test_plots_are_self_contained(results: Path, tmp_path: Path) -> None:
    files = write_plots(build_report(results).boards, tmp_path)
    assert {file.suffix for file in files} == {".svg", ".png"}
    from xml.etree import ElementTree

    for file in files:
        if file.suffix == ".svg":
            ElementTree.fromstring(file.read_text())  # noqa: S314  # written two lines above
        else:
            assert file.read_bytes().startswith(b"\x89PNG")


def test_figures_of_a_leaderboard(results: Path) -> None:
    (board,) = build_report(results).boards
    heat_map, scatter = draw_heat_map(board), draw_query_scatter(board)
    assert f">{100 * (SCORES.mean() + 0.2):.2f}<" in heat_map
    assert escape(HOSTILE_NAME[:20]) in heat_map
    assert scatter
    assert scatter.count("<circle") == 2 * len(SCORES)
    assert draw_length_curves(board) is None  # its tasks have no lengths
