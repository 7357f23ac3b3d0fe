"""What was published stands in the project as it was printed, its impossible cells are marked, and ours beside it only where measured."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from encodeonce.evaluate.evaluation import Edits, Evaluation, Score, Scored
from encodeonce.evaluate.hypotheses import Hypothesis
from encodeonce.evaluate.published.checks import findings
from encodeonce.evaluate.published.markdown import document
from encodeonce.evaluate.published.tables import Cell, PublishedTable, beside, elsewhere, published_tables

TABLES = {table.name: table for table in published_tables()}


def evaluation(split: str | None, utterances: int, task: str = "recognition") -> Evaluation:
    one = Scored(Hypothesis("a", "b", "b"), "b", "b", Edits(1, 0, 0, 0), Edits(1, 0, 0, 0))
    scores = {
        name: Score(name, value, "fraction", "by-some-bert")
        for name, value in (("wer", 0.25), ("cer", 0.125), ("bertscore_f1", 0.9))
    }
    return Evaluation("ours", scores, [one] * utterances, task=task, config={} if split is None else {"split": split})  # pyrefly: ignore


def our_cells(table: PublishedTable) -> list[str | None]:
    return [cell.printed for row in table.rows if row.ours for cell in row.cells]


def test_every_row_fits_its_table() -> None:
    for table in published_tables():
        for row in table.rows:
            assert len(row.labels) == len(table.headings)
            assert len(row.cells) == len(table.columns)
            assert all(Decimal(cell.printed).is_finite() for cell in row.cells if cell.printed)


def test_figures_keep_the_digits_that_were_printed() -> None:
    first = TABLES["thesis-asr"].rows[0].cells
    assert [cell.printed for cell in first] == ["103.56", "107.79", "79.15", "82.01"]
    assert TABLES["thesis-asr"].rows[1].cells[2].printed == "79.50"
    assert TABLES["thesis-baselines"].rows[0].cells[:3] == (Cell("2.5"), Cell("6.3"), Cell(None))


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, dict):
        for entry in value.values():
            yield from _numbers(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, int | float):
        yield float(value)


@pytest.mark.shared
@pytest.mark.skipif("ENCODEONCE_TEST_DATA" not in os.environ, reason="needs the published figures")
def test_every_figure_that_was_given_is_there() -> None:
    folder = Path(os.environ["ENCODEONCE_TEST_DATA"]).parent / "published"
    for name, tables in (("asr_qformer.json", "thesis"), ("peers.json", "rivals")):
        given = json.loads((folder / name).read_text())
        ours = {
            float(text)
            for table in published_tables()
            if table.name.startswith(tables)
            for row in table.rows
            for text in (*(cell.printed for cell in row.cells), *row.labels)
            if text and text.replace(".", "").isdigit()
        }
        assert set(_numbers(given)) == ours


def test_arithmetic_finds_each_marked_cell_and_no_other() -> None:
    found = {(one.table, one.row, cell) for one in findings(published_tables()) for cell in one.cells}
    marked = {
        (table.name, i, j)
        for table in published_tables()
        for i, row in enumerate(table.rows)
        for j, cell in enumerate(row.cells)
        if cell.mark
    }
    precision_out_of_line = (
        "thesis-bertscore",
        0,
        1,
    )  # beside the F1 that arithmetic finds: one of the two has to be wrong
    assert marked - found == {precision_out_of_line}
    assert found <= marked


def test_a_table_that_agrees_with_itself_has_no_findings() -> None:
    table = TABLES["thesis-bertscore"]
    corrected = {(0, 1): "84.16", (1, 2): "85.05", (4, 4): "92.20", (4, 5): "91.73", (5, 4): "94.54", (5, 5): "93.69"}
    rows = [
        replace(row, cells=tuple(Cell(corrected.get((i, j), cell.printed)) for j, cell in enumerate(row.cells)))
        for i, row in enumerate(table.rows)
    ]
    assert findings([replace(table, rows=tuple(rows))]) == []


def test_ours_stands_beside_the_same_test_set_alone() -> None:
    found = beside(TABLES["thesis-asr"], [evaluation("dev-clean", 2703)])
    assert found.rows[:-1] == TABLES["thesis-asr"].rows
    assert our_cells(found) == ["25.00", None, "12.50", None]
    assert elsewhere(published_tables(), [evaluation("dev-clean", 2703)]) is None


@pytest.mark.parametrize(
    ("split", "utterances"),
    [("dev-clean", 2702), ("dev-clean-2", 2703), ("train-clean-5", 122), (None, 2703), ("dev", 1423)],
)
def test_another_test_set_is_apart(split: str | None, utterances: int) -> None:
    other = evaluation(split, utterances)
    assert all(not our_cells(beside(table, [other])) for table in published_tables())
    apart = elsewhere(published_tables(), [other])
    assert apart is not None
    assert our_cells(apart) == ["25.00", "12.50", "90.00"]
    assert all(f"{utterances:,} utterances" in column.test_set for column in apart.columns)


def test_a_part_without_references_is_another_test_set() -> None:
    some = replace(evaluation("dev-clean", 2703), unscored=[Hypothesis("x", "y")])
    assert not our_cells(beside(TABLES["thesis-asr"], [some]))


def test_translations_do_not_stand_beside_recognition() -> None:
    assert not our_cells(beside(TABLES["thesis-bertscore"], [evaluation("dev-clean", 2703, "translation")]))


def test_our_bertscore_says_whose_model_it_is() -> None:
    row = beside(TABLES["thesis-bertscore"], [evaluation("dev-clean", 2703)]).rows[-1]
    (cell,) = (cell for cell in row.cells if cell.printed)
    assert "by-some-bert" in str(cell.mark)


def test_several_test_sets_are_columns_of_one_table() -> None:
    apart = elsewhere(published_tables(), [evaluation("a", 5), evaluation("b", 6), evaluation("dev-clean", 2703)])
    assert apart is not None
    assert len(apart.rows) == 2
    assert our_cells(apart) == [
        "25.00",
        "12.50",
        "90.00",
        None,
        None,
        None,
        None,
        None,
        None,
        "25.00",
        "12.50",
        "90.00",
    ]


def test_the_page_is_written_from_the_data() -> None:
    page = Path(__file__).parents[1] / "docs" / "published.md"
    assert page.read_text(encoding="utf-8") == document(), "python -m encodeonce.evaluate.published > docs/published.md"
