"""The tables of speed in the documentation are those of the records in benchmarks/results."""

from pathlib import Path

import pytest

from benchmarks import write_tables


def test_tables_in_the_documentation_equal_their_records() -> None:
    pages = [page.read_text() for page in write_tables.PAGES]
    for page, text in zip(write_tables.PAGES, pages, strict=True):
        assert write_tables.fill_tables(text) == text, f"{page.name}: python -m benchmarks.write_tables"
    assert all(f"<!-- table {name} -->" in "".join(pages) for name in write_tables.TABLES)


def test_a_figure_changed_by_hand_is_put_right() -> None:
    page = next(text for page in write_tables.PAGES if "<!-- table search -->" in (text := page.read_text()))
    changed = page.replace("| 0 |", "| 7 |")
    assert changed != page
    assert write_tables.fill_tables(changed) == page


def test_a_missing_record_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(write_tables, "HERE", tmp_path)
    page = "<!-- table cpu_encoder -->\n\nold\n\n<!-- end -->"
    assert write_tables.fill_tables(page) == page.replace("old", "Not measured yet; `make bench` does it.")
