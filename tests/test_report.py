"""The report: it shows the numbers of the files and no others, and hostile programs stay text."""

import base64
import hashlib
import html.parser
import json
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_run import made_up_program, made_up_results, make_workdir, write_programs

from prm_jax.config import Config, DenseConfig, to_json
from prm_jax.metrics import MetricsLog
from prm_jax.report import ReportError, figures, write_report
from prm_jax.report import page as page_module
from prm_jax.report.templates import signed, visible

HOSTILE = "</code></td></table><script>alert(1)</script><img src=x onerror=alert(2)>"


# -------------------------------------------------------------------------------- reading the page


class Page(html.parser.HTMLParser):
    """The elements of a page, its texts, and the `<data>` elements that hold its numbers."""

    VOID = {"meta", "path", "rect", "circle", "use"}

    def __init__(self, text):
        super().__init__()
        self.source, self.open, self.tags, self.attributes = text, [], [], []
        self.numbers, self.texts, self.drawn = [], [], []
        self.feed(text)
        assert self.open == [], "elements that are never closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "data":
            self.numbers.append((dict(attributes)["value"], ""))

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, text):
        if "data" in self.open:
            value, before = self.numbers[-1]
            self.numbers[-1] = (value, before + text)
        elif "svg" in self.open:
            self.drawn.append(text)
        elif not {"style", "script", "pre", "code"} & set(self.open):
            self.texts.append(text)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    results, programs = make_workdir(workdir, metrics=True)
    path = write_report(workdir)
    assert path == workdir / "report.html"
    return results, programs, Page(path.read_text())


def leaves(tree, path=()):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from leaves(value, (*path, index))
    elif not isinstance(tree, str):
        yield path, tree


def test_every_number_of_the_results_is_shown(drawn):
    results, programs, page = drawn
    shown = {float(value) for value, _ in page.numbers}
    hidden = []
    for path, value in leaves(results):
        # Every arm was evaluated on the same problems: their number is shown by horizon and in the
        # caption. "exact" is "acc_error" by another name.
        if path[-1] in ("schema", "exact", "n_error", "n_ok") or path[0] == "versions":
            continue
        if path[0] == "prm" and path[-1] in ("low", "high"):  # edges of bins, rounded
            continue
        if path[0] == "arms" and path[-1] == "n" and "by_horizon" not in path:
            continue
        if value not in shown:
            hidden.append(path)
    assert hidden == []
    assert {line["score"] for p in programs for line in p["lines"]} - {None} <= shown


def test_what_is_shown_is_the_number(drawn):
    _, _, page = drawn
    for value, text in page.numbers:
        if text.endswith(" s"):
            assert text == "2 min 11 s" and value == "131.4"
            continue
        number, read = float(value), float(text.replace("\xa0", "").replace("−", "-"))
        digits = len(text.partition(".")[2])
        close = 0.5001 * 10**-digits
        assert abs(read - number) <= close or abs(read - 100 * number) <= close, (value, text)


def test_no_number_is_written_into_the_page(drawn):
    _, _, page = drawn
    found = re.findall(r"\d+\.\d+(?:\.\d+)*", " ".join(page.texts))
    # The versions and the AUC of a guess.
    assert set(found) == {"0.1.0", "0.10.2", "3.11.9", "0.5"}


def test_the_difference_to_rl(drawn):
    results, _, page = drawn
    for arm in ("sft", "rl_prm"):
        difference = results["arms"][arm]["difference_to_rl"]
        for key in ("value", "low", "high"):
            shown = f"{100 * difference[key]:+.1f}".replace("-", "−")
            assert (str(difference[key]), shown) in page.numbers
    assert "nothing\nabout another seed" in " ".join(page.texts)


def test_drawings_show_the_results(drawn):
    results, _, page = drawn
    for arm in results["arms"].values():
        for result in (arm, arm["test_long"]):
            assert f"{100 * result['pass_at_1']['value']:.1f}" in page.drawn
    labels = [value for name, value in page.attributes if name == "aria-label"]
    low, high = (100 * results["arms"]["rl"]["pass_at_1"][key] for key in ("low", "high"))
    assert any(f"({low:.1f} to {high:.1f})" in label for label in labels)
    assert any(label.startswith("rollout/pass_rate by step: RL from") for label in labels)


def test_the_page_needs_nothing_else(drawn):
    _, _, page = drawn
    assert "http:" not in page.source and "https:" not in page.source
    assert not {"link", "img", "iframe", "object", "base"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action"):
            assert value.startswith("#"), (name, value)
    assert "@import" not in page.source
    assert set(re.findall(r"url\((.)", page.source)) <= {"#"}


def test_the_page_is_sound(drawn):
    _, _, page = drawn
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = [v[1:] for name, v in page.attributes if name in ("href", "xlink:href")]
    links += re.findall(r"url\(#([^)]+)\)", page.source)
    assert links and set(links) <= set(ids)
    drawings = re.findall(r"<svg role.*?</svg>", page.source, re.S)
    assert len(drawings) == 3 + 11
    for drawing in drawings:
        assert "var(--" in drawing and not re.search(r"#[0-9a-f]{6}\b", drawing)


def test_only_the_pages_own_script_may_run(drawn):
    _, _, page = drawn
    (script,) = re.findall(r"<script>(.*?)</script>", page.source, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        in page.source
    )


def test_the_documentation_names_the_curves_that_are_drawn():
    text = (Path(__file__).parents[1] / "docs/results.md").read_text()
    (said,) = re.findall(r"The report draws these where they are found:(.*?)\n\n", text, re.S)
    assert re.findall(r"`([^`]+)`", said) == [name for name, _, _ in page_module._CURVES]


# ---------------------------------------------------------------------------------------- programs


def hostile_program(rng):
    program = made_up_program(rng, 0)
    for field in ("task_id", "arm", "split", "prompt", "program_prefix", "status"):
        program[field] = HOSTILE
    program |= {"passed": False, "first_error": 1}
    program["lines"] = [
        {"text": HOSTILE, "kind": "code", "score": 0.5},
        {"text": "x = '\u202e)tfel ot thgir(' # \x00 \ud800", "kind": "code", "score": -0.5},
        {"text": "", "kind": "blank", "score": None},
    ]
    return program


def test_hostile_programs_stay_text(tmp_path):
    make_workdir(tmp_path)
    write_programs(tmp_path, [hostile_program(np.random.default_rng(0))])
    (tmp_path / "config.json").write_text(json.dumps({"tokenizer": {"path": HOSTILE}}))
    page = Page(write_report(tmp_path).read_text())
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    escaped = HOSTILE.replace("<", "&lt;").replace(">", "&gt;")
    assert page.source.count(escaped) >= 7
    assert r"x = &#39;\u202e)tfel ot thgir(&#39; # \x00 \ud800" in page.source


def test_first_errors_are_marked(tmp_path):
    make_workdir(tmp_path)
    rng = np.random.default_rng(1)
    program = made_up_program(rng, 0) | {"first_error": 2, "passed": False, "status": "timeout"}
    scores = [("code", 0.9), ("comment", -0.9), ("code", -0.04), ("code", -0.06), ("code", -1.0)]
    program["lines"] = [
        {"text": f"line {i}", "kind": kind, "score": score}
        for i, (kind, score) in enumerate(scores)
    ]
    write_programs(tmp_path, [program])
    source = write_report(tmp_path).read_text()
    rows = re.findall(r'<tr class="([^"]*)".*?<code>(line \d)</code>(.*?)</td>', source, re.S)
    assert [(name, "first error</span>" in tags) for _, name, tags in rows] == [
        ("line 0", False), ("line 1", False), ("line 2", True), ("line 3", True), ("line 4", False)
    ]  # fmt: skip
    assert "wrong" in rows[2][0] and 'class="tag true"' in rows[2][2]
    # The threshold of the made-up results is -0.05, and comments are not judged.
    assert 'class="tag suspect"' in rows[3][2]
    assert "✗ timeout" in source


@pytest.mark.parametrize(
    "number, text", [(0.834, "+0.83"), (-0.415, "−0.41"), (0.004, "0.00"), (-0.004, "0.00")]
)
def test_signed(number, text):
    assert signed(number) == text


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text())
def test_visible_hides_nothing(shown):
    result = visible(shown)
    assert all(c in "\n\t" or unicodedata.category(c)[0] != "C" for c in result)
    if shown.isprintable():
        assert result == shown


# ---------------------------------------------------------------------------------- what is missing


def without(*paths):
    def change(results):
        for *parents, last in paths:
            tree = results
            for key in parents:
                tree = tree[key]
            del tree[last]

    return change


ARMS = ("sft", "rl", "rl_prm")
TRAINED = ("rl", "rl_prm")
COSTS = tuple(made_up_results(np.random.default_rng(0))["label_cost"])


@pytest.mark.parametrize(
    "change, said",
    [
        (without(["label_cost"]), "Labels and their cost are not in this workdir"),
        (without(["label_cost", "responses"]), "of probes, for the labels"),
        (without(*(["label_cost", key] for key in COSTS)), "What was spent"),
        (without(["labels"]), "Counts of the labels are not"),
        (without(["prm"]), "The PRM's quality is not"),
        (without(["prm", "calibration"]), "AUC within problems"),
        (without(["prm", "first_error"]), "AUC within problems"),
        (without(["prm", "first_error", "missed"]), "Placed too late"),
        (without(["prm", "by_step_of_rl_prm"]), "AUC within problems"),
        (without(["prm", "style"]), "The PRM on each checkpoint of RL + PRM"),
        (without(["prm", "style"], ["prm", "by_step_of_rl_prm"]), "AUC within problems"),
        (
            without(*(["arms", arm, "critic"] for arm in TRAINED)),
            "What the rollouts of training solved",
        ),
        (
            without(*(["arms", arm, "plans"] for arm in TRAINED)),
            "What the rollouts of training solved",
        ),
        (
            without(*(["arms", arm, "exploration"] for arm in TRAINED)),
            "What the rollouts of training solved",
        ),
        (without(["arms"]), "The result table is not in this workdir"),
        (without(["arms", "rl_prm"], ["label_cost"], ["labels"], ["prm"]), "arm RL + PRM is not"),
        (without(["arms", "rl"]), "The arm RL is not in this workdir"),
        (without(*(["arms", arm, "test_long"] for arm in ARMS)), "pass@10"),
        (without(*(["arms", arm, "pass_at_k"] for arm in ARMS)), "pass@1"),
        (without(*(["arms", arm, "by_horizon"] for arm in ARMS)), "longer"),
        (without(["arms", "rl", "by_horizon", "8"], ["arms", "sft", "pass_at_k", "5"]), "pass@5"),
    ],
)
def test_missing_results_are_said(tmp_path, change, said):
    results, _ = make_workdir(tmp_path)
    change(results)
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = Page(write_report(tmp_path).read_text())
    assert said in " ".join(page.texts)


def test_the_price_of_the_prm_is_its_responses_and_its_completions(drawn):
    results, _, page = drawn
    (table,) = re.findall(r'<table class="results">.*?</table>', page.source, re.S)
    for name in ("responses", "completions"):
        cell = f'<data value="{results["label_cost"][name]}">'
        (row,) = [row for row in re.findall(r"<tr>.*?</tr>", table, re.S) if cell in row]
        cells = re.findall(r"<td>(.*?)</td>", row)
        assert [cell in text for text in cells] == [False, False, True]  # of RL + PRM alone
    assert "responses and completions both" in page.source


def test_results_without_a_paired_difference_show_a_plain_one(tmp_path):
    results, _ = make_workdir(tmp_path)
    arms = results["arms"]
    for arm in ("sft", "rl_prm"):
        del arms[arm]["difference_to_rl"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = Page(write_report(tmp_path).read_text())
    difference = arms["rl_prm"]["pass_at_1"]["value"] - arms["rl"]["pass_at_1"]["value"]
    assert (str(difference), f"{100 * difference:+.1f}") in page.numbers
    (row,) = re.findall(r"<tr><th[^>]*>Against RL.*?</tr>", page.source, re.S)
    assert "interval" not in row


def test_undefined_quantities_are_dashes(tmp_path):
    results, _ = make_workdir(tmp_path)
    results["prm"] |= {"auc_within_response": None, "ece": None}
    results["label_cost"]["completions_per_failing_response"] = None
    results["prm"]["calibration"][3] |= {"n": 0, "mean_score": None, "success": None}
    (tmp_path / "results.json").write_text(json.dumps(results))
    source = write_report(tmp_path).read_text()
    assert "None" not in source and "nan" not in re.findall(r"<data.*?</data>", source)
    assert source.count('<span class="none">–</span>') >= 3


def test_a_run_that_has_only_begun(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.log("sft", 0, {"sft/loss": 3.0})
    page = Page(write_report(tmp_path).read_text())
    said = " ".join(page.texts)
    for what in ("The result table is", "pass@1 by horizon is", "Scored programs are"):
        assert f"{what} not in this workdir" in said
    assert "sft/loss by step: SFT from 3 to 3." in [
        v for n, v in page.attributes if n == "aria-label"
    ]


def test_the_page_says_who_scored_the_lines(tmp_path):
    workdir = tmp_path / "run"
    make_workdir(workdir)
    assert "with the process reward model" in write_report(workdir).read_text()
    config = Config(dense=DenseConfig(source="labels"), value_init=False)
    (workdir / "config.json").write_text(to_json(config))
    page = write_report(workdir).read_text()
    assert "labels of its own failing responses" in page
    config = Config(dense=DenseConfig(source="labels", prm_updates=2), value_init=False)
    (workdir / "config.json").write_text(to_json(config))
    page = write_report(workdir).read_text()
    assert "learns on the way" in page and "labels of its own" not in page


def test_a_prm_that_learned_from_nothing_was_judged_on_its_policy_alone(tmp_path):
    results, _ = make_workdir(tmp_path)
    results["prm"] = {"by_step_of_rl_prm": results["prm"]["by_step_of_rl_prm"]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    said = " ".join(Page(write_report(tmp_path).read_text()).texts)
    assert "The PRM on each checkpoint of RL + PRM" in said
    assert "Judged by the labels" not in said and "Telling right from wrong" not in said


def test_results_alone_are_enough(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(made_up_results(np.random.default_rng(0))))
    said = " ".join(Page(write_report(tmp_path).read_text()).texts)
    assert "Learning curves are not in this workdir" in said
    assert "config.json is not in this workdir" in said


def test_results_of_another_schema_are_refused(tmp_path):
    results, _ = make_workdir(tmp_path)
    before = write_report(tmp_path).read_text()
    (tmp_path / "results.json").write_text(json.dumps(results | {"schema": 2}))
    with pytest.raises(ReportError, match=r"results.json has schema 2, and this version reads 1"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == before
    assert not list(tmp_path.glob("*.new"))


def test_the_command_line(tmp_path):
    command = [sys.executable, "-m", "prm_jax.report", "--workdir", str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1
    assert (
        "holds neither results.json nor metrics.jsonl; run `python -m prm_jax.train"
        in refused.stderr
    )
    make_workdir(tmp_path)
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


# ------------------------------------------------------------------------------------------ curves


def test_long_curves_are_averaged_in_bins():
    points = np.stack([np.arange(10_000.0), np.arange(10_000.0) % 2], axis=1)
    binned = figures._binned(points)
    assert binned.shape == (300, 2)
    np.testing.assert_allclose(binned[:, 1], 0.5, atol=0.02)
    assert (np.diff(binned[:, 0]) > 0).all()


def test_smoothing_keeps_straight_lines():
    line = np.linspace(3.0, 5.0, 60)  # a moving mean would bend its ends
    np.testing.assert_allclose(figures._smoothed(line), line)


def test_smoothing_takes_noise_away_at_the_ends_too():
    smooth = figures._smoothed(np.random.default_rng(0).normal(size=200))
    assert abs(smooth).max() < 1.2 and smooth.std() < 0.4
