import re

import pytest

from expunge.records import Score
from expunge.report.glossary import METRICS, interval, meaning, number, task_label
from expunge.report.latex import latex
from expunge.report.tables import Cell, Column, Table, html, markdown, score_cell

TABLE = Table(
    "tab",
    "A caption with 95 % & more",
    (Column("task"), Column("metric"), Column("grad_ascent", True), Column("npo", True)),
    (
        (Cell("Forget"), Cell("p"), Cell("0.50", "0.40–0.60", 0.5), Cell("–", note="no retain scores; run `x --y`")),
        (Cell("Forget"), Cell("q"), Cell("1.8·10⁻²¹", None, 1.8e-21), Cell("–", note="no retain scores; run `x --y`")),
        (Cell("Keep"), Cell("p"), Cell("−0.10", "−0.20 to 0.10", -0.1), Cell("<b>&", note="another")),
    ),
    stub=2,
)


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("forget_effect", 1.0449, "1.04"),
        ("forget_effect", -0.001, "0.00"),
        ("forget_effect", -0.11, "−0.11"),
        ("probability", 0.62274, "0.623"),
        ("forget_quality", 1.83e-21, "1.8·10⁻²¹"),
        ("forget_quality", 0.5859, "0.586"),
        ("forget_quality", 0.0, "0.000"),
        ("privleak", -54.25, "−54.2"),
        ("perplexity", 12345.678, "1.235e+04"),
    ],
)
def test_numbers_are_written_as_their_metric_asks(metric, value, text):
    assert number(metric, value) == text


def test_an_interval_with_a_negative_end_has_no_dash_that_reads_as_minus():
    assert interval("forget_effect", 0.914, 1.0449) == "0.91–1.04"
    assert interval("forget_effect", -0.1, 0.2) == "−0.10 to 0.20"
    assert interval("forget_quality", None, None) is None


def test_every_metric_of_the_design_has_a_sentence():
    named = [
        "probability", "rouge_l_recall", "truth_ratio", "extraction_strength", "exact_memorization", "perplexity", "accuracy",
        "exact_match", "f1", "mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_gradnorm", "mia_reference",
        "privleak", "forget_quality", "model_utility", "harmful_rate", "toxicity", "repetition", "mc1", "mc2", "pass_at_1",
        "forget_effect", "retain_kept",
    ]  # fmt: skip
    assert set(named) <= set(METRICS)
    assert all(m.sentence.endswith(".") and "\n" not in m.sentence for m in METRICS.values())


def test_unknown_metrics_and_tasks_keep_their_own_names():
    assert meaning("house_score").label == "house score"
    assert task_label("my_task") == "My task"
    assert task_label("language_velun") == "Language: velun"


def test_a_score_without_value_is_a_dash_with_its_reason():
    cell = score_cell(Score(task="a", metric="f1", value=None, n=0, unscored="no judge"))
    assert (cell.text, cell.note, cell.value) == ("–", "no judge", None)
    assert score_cell(None).note == "not part of this run's evaluation"


def test_html_carries_full_values_intervals_and_footnotes():
    text = html(TABLE)
    assert "data-value='1.8e-21'" in text
    assert "1.8·10<sup class=power>−21</sup>" in text
    assert "<small>0.40–0.60</small>" in text
    assert text.count("<sup>1</sup>") == 2
    assert "<li>no retain scores; run <code>x --y</code></li><li>another</li>" in text
    assert "<th scope='row' rowspan=2>Forget</th>" in text
    assert text.count(">Forget<") == 1


def test_html_escapes_every_text():
    evil = "<script>alert('x')</script>\"'"
    table = Table(
        "t",
        evil,
        (Column(evil), Column(evil, True, evil)),
        ((Cell(evil), Cell(evil, evil, 1.0)), (Cell("a"), Cell("–", note=evil))),
    )
    text = html(table)
    assert "<script" not in text
    assert not re.search(r"title='[^']*\"'?'[^> ]", text)
    assert text.count("&lt;script&gt;") == 9


def test_markdown_is_a_table_with_equal_columns():
    lines = [line for line in markdown(TABLE).splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}
    assert lines[0] == r"| task | metric | grad\_ascent | npo |"
    assert lines[1] == "| :--- | :--- | ---: | ---: |"
    assert "0.50 (0.40–0.60)" in lines[2]
    assert "[1] no retain scores" in markdown(TABLE)


def test_latex_escapes_and_balances():
    text = latex(TABLE)
    assert r"95 \% \& more" in text
    assert r"grad\_ascent" in text
    assert r"1.8$\cdot$10$^{-21}$" in text
    assert r"0.50 {\scriptsize (0.40--0.60)}" in text
    assert r"--$^{1}$" in text
    assert text.count("{") == text.count("}")
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines() if line.endswith(r"\\")} == {3}
    assert not re.search("[⁻⁰¹²³–−·]", body)


def wide(columns: int) -> Table:
    cells = tuple(Cell(f"0.{i}23", f"−0.{i}00 to 0.999", 0.1) for i in range(columns))
    names = tuple(Column(f"a_rather_long_name_{i}", True) for i in range(columns))
    rows = tuple((Cell(f"Task {t}"), Cell("accuracy"), *cells) for t in range(3))
    return Table("wide", "Caption", (Column("task"), Column("metric"), *names), rows, stub=2, apart=1)


@pytest.mark.parametrize("columns", [1, 3, 6, 20])
def test_latex_spreads_a_wide_table_over_floats_that_each_fit_on_a_page(columns):
    text = latex(wide(columns))
    floats = text.count(r"\begin{table}")
    assert floats == text.count(r"\end{table}") == text.count(r"\caption{Caption}") + text.count(r"\caption{Caption (continued)}")
    assert (floats == 1) == (columns <= 6)
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert len(set(labels)) == floats
    assert text.count("{") == text.count("}")
    assert all(f"0.{i}23" in text for i in range(columns))
    for part in text.split(r"\begin{table}")[1:]:
        letters = re.search(r"\\begin\{tabular\}\{(l+r+)\}", part)[1]
        body = part[part.index(r"\toprule") : part.index(r"\bottomrule")]
        flat = re.sub(r"\\begin\{tabular\}\[.\]\{@\{\}r@\{\}\}.*?\\end\{tabular\}", "x", body)
        rows = [line for line in flat.splitlines() if line.endswith(r"\\")]
        assert {line.count("&") + 1 for line in rows} == {len(letters)}
        assert letters.count("r") <= 6


def test_latex_keeps_hyphens_apart_and_sets_commands_as_code():
    table = Table("t", "c", (Column("a"), Column("b", True)), ((Cell("x"), Cell("–", note="run `x --suite tofu` first")),))
    assert r"\texttt{x -{}-suite tofu}" in latex(table)
    assert "x --suite tofu" in markdown(table)


def test_a_label_in_latex_holds_nothing_that_is_a_command():
    text = latex(Table(r"a_b\input{x}%-scores", "Caption", (Column("model"),), ((Cell("npo"),),)))
    assert "\\label{tab:a-b-input-x-scores}" in text


def test_every_metric_that_is_computed_has_a_sentence():
    from expunge.evaluation.metrics import METRICS as COMPUTED

    assert set(COMPUTED) <= set(METRICS)
    assert meaning("mia_loss_relative_difference").label == "loss attack (AUC), against a retain model"


@pytest.mark.parametrize(("cut", "rows"), [(0.0, 1), (0.25, 2)])
def test_that_no_prompt_was_cut_is_said_once(cut, rows):
    from expunge.records import Evaluation
    from expunge.report.page_tables import score_table
    from expunge.report.read import RunRecord

    scores = tuple(Score(task="mmlu_law", metric=m, value=v, n=4) for m, v in (("accuracy", 0.5), ("prompt_cut", cut)))
    run = RunRecord(name="a", folder="a", evaluations=(Evaluation(suite="mmlu", artifact="a", seconds=1.0, scores=scores),))
    table = score_table("mmlu", [run], None)
    assert len(table.rows) == rows
    assert ("No prompt was cut" in table.caption) == (cut == 0)
