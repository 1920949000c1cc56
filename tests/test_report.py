from __future__ import annotations

import base64
import json
import math
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from nni_cafenet import plots
from nni_cafenet.errors import CafeNetError
from nni_cafenet.report import HistoryRow, Report, WidthRow, read_report, summary_table, write_report

FILES = ("result.json", "widths.csv", "history.csv", "report.html")


def make_report(groups: int = 6, candidates: int = 30, names: list[str] | None = None, **changes: Any) -> Report:
    """Plain numbers of the right kinds, for looking at files only."""
    names = names or [f"features.{i}.conv.{i % 3}" for i in range(groups)]
    widths = tuple(WidthRow(name, 16 + 8 * i, 8 + 5 * i, 11 + 5 * i) for i, name in enumerate(names))
    summary = {
        "dense": {"macs": 2_000_000, "params": 40_000, "accuracy": 0.95, "accuracy_std": 0.001},
        "budget": {"max_macs": 1_000_000},
        "slim": {"macs": 990_000, "params": 21_000, "accuracy": 0.94, "accuracy_std": 0.002},
        "uniform": {"macs": 980_000, "params": 20_000, "accuracy": 0.93, "accuracy_std": 0.003},
        "random": {"macs": 970_000, "params": 22_000, "accuracy": 0.92, "accuracy_std": 0.004},
        "widths": {row.group: row.slim for row in widths},
        "seconds": {"supernet": 75.0, "search": 7500.0},
        "seed": 7,
        "accuracy_of": "networks trained from scratch, on the test data",
        "runs": 3,
        **changes,
    }
    history = tuple(
        HistoryRow(900_000 + 997 * (i * 7 % 31), 20_000 + i, 0.7 + 0.1 / (1 + i)) for i in range(candidates)
    )
    return Report({name: value for name, value in summary.items() if value is not None}, widths, history)


@pytest.fixture(scope="module")
def _drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("drawn") / "run", make_report()).parent


@pytest.fixture
def written(_drawn: Path, tmp_path: Path) -> Path:
    """A folder with make_report() in it, to damage: drawing it takes a second, copying it nothing."""
    return Path(shutil.copytree(_drawn, tmp_path / "run"))


def images_of(html: str) -> list[str]:
    return [
        base64.b64decode(data).decode("utf-8") for data in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", html)
    ]


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    report = make_report(names=["plain", "with,comma", 'with "quotes"', "ünïcode", "two\nlines"])
    page = write_report(tmp_path / "new" / "folder", report)
    assert page == tmp_path / "new" / "folder" / "report.html"
    assert read_report(page.parent) == report
    assert sorted(path.name for path in page.parent.iterdir()) == sorted(FILES)


def test_files_have_the_promised_form(written: Path) -> None:
    assert (written / "widths.csv").read_text().splitlines()[:2] == [
        "group,full,slim,uniform",
        "features.0.conv.0,16,8,11",
    ]
    assert (written / "history.csv").read_text().splitlines()[:2] == ["macs,params,score", f"900000,20000,{0.7 + 0.1}"]
    text = (written / "result.json").read_text()
    assert json.loads(text) == make_report().summary
    assert text.startswith('{\n  "dense": {\n    "macs"')


def test_redrawing_gives_the_same_bytes(written: Path, tmp_path: Path) -> None:
    write_report(tmp_path / "second", read_report(written))
    for name in FILES:
        assert (written / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.parametrize("groups", [1, 3, 60, 130])
def test_page_is_self_contained(tmp_path: Path, groups: int) -> None:
    html = write_report(tmp_path, make_report(groups)).read_text()
    assert "http" not in html
    assert "<script" not in html
    assert re.findall(r'(?:src|href)="(?!data:)', html) == []
    assert len(images_of(html)) == 3
    assert all("<svg" in image for image in images_of(html))
    assert html.count("<tr>") + html.count("<tr ") == (4 + 1) + (groups + 1)


def test_drawing_grows_with_the_groups() -> None:
    def width(groups: int) -> float:
        svg = plots.draw_widths(["layer"] * groups, [8] * groups, {"slim": [4] * groups}).decode()
        return float(re.findall(r'width="([\d.]+)pt"', svg)[0])

    assert width(3) == width(12) < width(60) < width(120)


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    hostile = '<script>alert("1")</script>&$x^2$ $title -->'
    report = make_report(
        names=[hostile, "b"], accuracy_of=hostile, command=hostile, seconds={hostile: 1.0}, seed=hostile,
    )  # fmt: skip
    html = write_report(tmp_path, report).read_text()
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;$x^2$ $title --&gt;") == 5
    assert all("<script" not in image for image in images_of(html))
    assert read_report(tmp_path) == report


def test_names_in_any_script_are_drawn(tmp_path: Path) -> None:
    assert "层一" in write_report(tmp_path, make_report(names=["层一", "unbalanced $ sign", "_", ""])).read_text()


def test_a_failing_write_leaves_the_old_file(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {name: (written / name).read_bytes() for name in FILES}
    write_text = Path.write_text

    def fail_halfway(path: Path, text: str, **options: Any) -> int:
        write_text(path, text[: len(text) // 2], **options)
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", fail_halfway)
    with pytest.raises(OSError, match="no space left"):
        write_report(written, make_report(seed=2))
    assert {path.name: path.read_bytes() for path in written.iterdir()} == old


def test_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(tmp_path, make_report(seconds={"search": math.nan}))
    with pytest.raises(ValueError, match="score must be a finite number, but got nan"):
        HistoryRow(1, 1, math.nan)
    assert list(tmp_path.iterdir()) == []


def test_what_a_searcher_predicts_is_kept_and_shown(tmp_path: Path) -> None:
    report = make_report()
    rows = tuple(replace(row, predicted=row.score + 0.01 * number) for number, row in enumerate(report.history))
    html = write_report(tmp_path, replace(report, history=rows)).read_text()
    assert read_report(tmp_path).history == rows
    assert (tmp_path / "history.csv").read_text().startswith("macs,params,score,predicted\n")
    assert "predicted scores" in html
    assert any("predicted from all scores" in image for image in images_of(html))
    html = write_report(tmp_path, report).read_text()
    assert (tmp_path / "history.csv").read_text().startswith("macs,params,score\n")
    assert "predicted" not in html
    (tmp_path / "history.csv").write_text("macs,params,score,predicted\n1,1,0.5,\n")
    with pytest.raises(CafeNetError, match=r"history\.csv is damaged"):
        read_report(tmp_path)


def test_absent_networks_are_left_out(tmp_path: Path) -> None:
    report = make_report(uniform=None, random=None)
    html = write_report(tmp_path, report).read_text()
    assert read_report(tmp_path) == report
    for text in (html, *images_of(html), summary_table(report)):
        assert "Uniform" not in text
        assert "Random" not in text


def test_no_history_and_no_widths_draw_what_there_is(tmp_path: Path) -> None:
    report = replace(make_report(), widths=(), history=())
    assert len(images_of(write_report(tmp_path, report).read_text())) == 1
    assert read_report(tmp_path) == report


def test_the_course_of_a_search_leaves_out_the_larger_networks_that_it_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[float]] = []
    monkeypatch.setattr(plots, "draw_history", lambda scores, predicted: drawn.append(scores) or b"<svg/>")
    rows = (HistoryRow(2_000_000, 40_000, 0.95), HistoryRow(990_000, 40_000, 0.9), HistoryRow(900_000, 20_000, 0.8))
    report = replace(make_report(), history=rows)
    write_report(tmp_path, report)
    summary = {**report.summary, "budget": {"max_macs": 1_000_000, "max_params": 30_000}}
    write_report(tmp_path, replace(report, summary=summary))
    write_report(tmp_path, replace(report, history=rows[:1]))
    assert drawn == [[0.9, 0.8], [0.8]]


def test_the_marked_candidate_is_the_one_that_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked: list[object] = []
    monkeypatch.setattr(plots, "draw_accuracy", lambda *_, found, **__: marked.append(found) or b"<svg/>")
    rows = (
        HistoryRow(2_000_000, 40_000, 0.95, 0.94),  # a larger one on the way
        HistoryRow(990_000, 40_000, 0.9, 0.8),  # the luckiest
        HistoryRow(900_000, 20_000, 0.8, 0.85),
        HistoryRow(890_000, 20_000, 0.8, 0.85),
    )
    summary = {**make_report().summary, "budget": {"max_macs": 1_000_000}}
    write_report(tmp_path, replace(make_report(), summary=summary, history=rows))
    plain = tuple(replace(row, predicted=None) for row in rows)
    write_report(tmp_path, replace(make_report(), summary=summary, history=plain))
    write_report(tmp_path, replace(make_report(), summary=summary, history=plain[:1]))
    assert marked == [(890_000, 0.8), (990_000, 0.9), None]
    for slim in ((900_000, 20_000), (900_001, 20_000)):  # what finalists chose is one of the candidates, or Uniform
        chosen = {"finalists": "16", "slim": {**summary["slim"], "macs": slim[0], "params": slim[1]}}
        write_report(tmp_path, replace(make_report(), summary={**summary, **chosen}, history=plain))
    assert marked[3:] == [(900_000, 0.8), None]


def test_long_history_stays_a_small_file(tmp_path: Path) -> None:
    page = write_report(tmp_path, make_report(candidates=20_000))
    assert page.stat().st_size < 1_500_000


def test_drawing_leaves_the_callers_style_and_is_not_touched_by_it() -> None:
    plain = plots.draw_history([0.1, 0.3, 0.2])
    with matplotlib.rc_context({"lines.linewidth": 9, "figure.facecolor": "pink"}):
        assert plots.draw_history([0.1, 0.3, 0.2]) == plain
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_pareto_front_has_what_nothing_beats_in_both() -> None:
    assert plots.pareto([(5, 0.5), (3, 0.4), (4, 0.3), (3, 0.2), (6, 0.5), (7, 0.9)]) == [(3, 0.4), (5, 0.5), (7, 0.9)]


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [0.0, 0.05, 2.0], [0.0, 5.0], [3.0], []])
def test_labels_keep_their_distance_and_order(values: list[float]) -> None:
    spread = plots._spread(values, 0.5)
    assert all(after - before >= 0.5 - 1e-9 for before, after in pairwise(spread))
    assert sum(spread) == pytest.approx(sum(values))


def test_table_for_the_terminal() -> None:
    lines = summary_table(make_report()).splitlines()
    assert [line.split()[0] for line in lines] == [
        "network",
        "-------",
        "dense",
        "slim",
        "Uniform",
        "Random",
        "budget:",
    ]
    assert lines[3].split() == ["slim", "990,000", "49.5%", "21,000", "52.5%", "0.9400", "±", "0.0020"]
    assert lines[-1] == "budget: 1,000,000 MACs (50.0% of dense)"
    assert len({len(line) for line in lines[:-1]}) == 1


def test_the_deviation_of_one_run_is_unknown_not_zero(tmp_path: Path) -> None:
    report = make_report(runs=1)
    assert "±" not in summary_table(report)
    assert "±" not in write_report(tmp_path, report).read_text()


def test_budget_of_parameters_alone(tmp_path: Path) -> None:
    report = make_report(budget={"max_params": 20_000})
    assert summary_table(report).endswith("budget: 20,000 parameters (50.0% of dense)")
    assert "20,000 parameters" in write_report(tmp_path, report).read_text()


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CafeNetError, match=r"absent cannot be read \(No such file.*give the folder of a finished run"):
        read_report(tmp_path / "absent")


@pytest.mark.parametrize("name", FILES[:3])
def test_missing_file_is_named(written: Path, name: str) -> None:
    (written / name).unlink()
    with pytest.raises(CafeNetError, match=rf"{name} cannot be read.*give the folder of a finished run"):
        read_report(written)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("result.json", b"", "Expecting value"),
        ("result.json", b'{"dense": ', "Expecting value"),
        ("result.json", b"[]", "not an object"),
        ("result.json", b"{}", "'dense' is missing"),
        ("result.json", b"\xff\xfe", "can't decode"),
        ("result.json", b'{"dense": {"macs": 1, "params": 2, "accuracy": NaN}}', "NaN is no number"),
        ("result.json", b'{"dense": {"macs": 1, "params": 2}}', "'accuracy' of 'dense' is not a number"),
        ("widths.csv", b"", "the header is not group,full,slim,uniform"),
        ("widths.csv", b"group,full,slim,uniform\nconv,8,4\n", "line 2: "),
        ("widths.csv", b"group,full,slim,uniform\nconv,8,4,x\n", "line 2: invalid literal"),
        ("widths.csv", b"group,full,slim,uniform\nconv,0,0,0\n", "line 2: full must be at least 1"),
        ("history.csv", b"macs,score\n1,2\n", "the header is not macs,params,score"),
        ("history.csv", b"macs,params,score\n1,2,0.5\n1,2,nan\n", "line 3: score must be a finite number"),
    ],
)
def test_damaged_file_is_named(written: Path, name: str, content: bytes, what: str) -> None:
    (written / name).write_bytes(content)
    with pytest.raises(CafeNetError, match=rf"{name} is damaged \(.*{what}.*give the folder of a finished run"):
        read_report(written)


@pytest.mark.parametrize(
    "change",
    [{"budget": 5}, {"seconds": {"search": "long"}}, {"uniform": []}, {"runs": "3"}, {"seed": None}, {"widths": None}],
)
def test_damaged_summary_is_refused(written: Path, change: dict[str, Any]) -> None:
    (written / "result.json").write_text(json.dumps(make_report(**change).summary))
    with pytest.raises(CafeNetError, match=r"result.json is damaged \('"):
        read_report(written)
