"""Result files of the bench, and what is read from them."""

from __future__ import annotations

import math
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness import machine, result_families, result_plots, result_report, results_file, revisions, targets
from harness.timing import Latency
from matplotlib.axes import Axes
from small_bench import ROW, row

ROOT = Path(__file__).parents[2]


def test_a_row_replaces_the_one_of_the_same_key_only(tmp_path: Path):
    path = tmp_path / "a-gpu.csv"
    results_file.append(path, [row(), row(provider="sdpa flash"), row(commit="2", p50_ms="1")])
    results_file.append(path, [row(p50_ms="7"), row(shape="other"), row(ptxas="13.1")])
    rows = results_file.read(path)
    assert len(rows) == 5
    assert [r["p50_ms"] for r in rows if r["commit"] == "1" and r["provider"] == ROW["provider"]] == ["7", "2", "2"]
    assert len(results_file.latest(rows)) == 3


def test_result_files_of_version_0_1_are_read(tmp_path: Path):
    path = tmp_path / "cpu.csv"
    path.write_text(
        "op,shape,provider,p20_ms,p50_ms,p80_ms,ratio_to_peer,max_error,threads,cpu,torch,date\n"
        "favor full,b1-h8-l1024-d64-m256,favorcast,30.46,33.40,36.70,0.834,5.1e-07,2,AMD EPYC,2.13.0+cpu,2026-11-22\n"
    )
    (old,) = results_file.read(path)
    assert old["provider"] == "favorcast reference"
    assert (old["device"], old["pass"], old["dtype"]) == ("AMD EPYC", "forward+backward", "float32")
    assert results_file.milliseconds(old) == 33.4
    results_file.append(path, [row()])
    assert len(results_file.read(path)) == 2


def sweep() -> list[results_file.Row]:
    """Rows in which our time is 1 ms and softmax attention's doubles: it crosses at 2000 tokens."""
    rows = []
    for length, softmax in ((1000, "0.5"), (4000, "2"), (16000, "8")):
        shape = f"b1-h1-l{length}-d64-m256"
        rows.append(row(shape=shape, p50_ms="1", provider="favorcast triton"))
        rows.append(row(shape=shape, p50_ms=softmax, provider="sdpa flash"))
        rows.append(row(shape=shape, p50_ms="100", provider="sdpa efficient"))
    failed = {"p50_ms": "", "provider": "fla chunk_linear_attn", "status": "failed", "message": "RuntimeError: a | b"}
    return [*rows, row(shape="b1-h1-l1000-d64-m256", **failed)]


def test_the_crossover_is_interpolated():
    rows = sweep()
    assert result_families.crossover(rows) == pytest.approx(2000, rel=1e-6)
    assert result_families.crossover([r for r in rows if "l1000-" not in r["shape"]]) == 0
    assert result_families.crossover([r for r in rows if "l1000-" in r["shape"]]) is None
    slow = [r | {"p50_ms": "1000"} if r["provider"].startswith("favorcast") else r for r in rows]
    assert result_families.crossover(slow) == math.inf


@pytest.mark.parametrize("softmax", ["nn.MultiheadAttention", "softmax with a cache", "sdpa with a cache"])
def test_layers_and_models_of_softmax_attention_cross_as_well(softmax: str):
    rows = [r | {"provider": softmax if r["provider"] == "sdpa flash" else r["provider"]} for r in sweep()]
    assert result_families.crossover(rows) == pytest.approx(2000, rel=1e-6)


def test_a_provider_has_one_colour_in_every_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: dict[str, set[str]] = {}
    draw = result_plots._draw

    def watched(ax: Axes, *arguments: Any) -> None:
        draw(ax, *arguments)
        for line in ax.get_lines():
            drawn.setdefault(str(line.get_label()), set()).add(str(line.get_color()))

    monkeypatch.setattr(result_plots, "_draw", watched)
    other = [r | {"op": "other"} for r in sweep() if r["provider"] != "sdpa efficient"]
    result_plots.write_plots([*other, *sweep()], tmp_path / "a-gpu")
    assert set(drawn) == {"favorcast triton", "sdpa flash", "sdpa efficient"}
    assert all(len(colours) == 1 for colours in drawn.values())
    assert len(set.union(*drawn.values())) == 3


def test_the_report_shows_every_row_and_draws_the_sweep(tmp_path: Path):
    results_file.append(tmp_path / "a-gpu.csv", sweep())
    written = result_report.write_reports(tmp_path)
    assert {p.name for p in written} == {"a-gpu.md", "a-gpu-time.png", "a-gpu-roofline.png", "a-gpu-memory.png"}
    assert all(p.stat().st_size > 0 for p in written)
    text = (tmp_path / "a-gpu.md").read_text()
    assert "at 2000 tokens" in text
    assert "| **favorcast triton** | 1 (1.9 - 2.1) |" in text
    assert "failed: RuntimeError: a \\| b" in text
    lines = [line for line in text.splitlines() if line.startswith("| b1")]
    assert len(lines) == 10
    assert {line.replace("\\|", "").count("|") for line in lines} == {11}


def test_targets_are_read_from_the_files_of_one_gpu(tmp_path: Path):
    shape, driver = "b8-h16-l4096-d64-m256", {"driver": "580.1"}
    measured = [
        row(shape=shape, provider="favorcast triton", graph_p50_ms="0.5", **driver),
        row(shape=shape, provider="sdpa flash", p50_ms="4", **driver),
        row(shape=shape, provider="sdpa cudnn", p50_ms="3", **driver),
        row(op="host cost favor_attention", shape="b1-h1-l16-d16-m32", p50_ms="0.0125", **driver),
    ]
    results_file.append(tmp_path / "a-gpu.csv", measured)
    lines = targets.table(tmp_path).splitlines()
    assert lines[2].endswith("| 50 % (L=4096) |")
    assert lines[3].endswith("| 6x (L=4096) |")
    assert "| 12.5 us (b1-h1-l16-d16-m32) |" in "".join(lines)
    assert sum(targets.UNMEASURED in line for line in lines) == len(targets.TARGETS) - 3
    results_file.append(tmp_path / "other.csv", [row(device="another GPU", **driver)])
    with pytest.raises(ValueError, match="--device"):
        targets.table(tmp_path)
    assert targets.table(tmp_path, device="^a GPU").splitlines() == lines


def test_a_target_reads_the_kernels_rows_only(tmp_path: Path):
    shape, driver = "b8-h16-l4096-d64-m256", {"driver": "580.1"}
    kernels = {"provider": "favorcast triton", "shape": shape, **driver}
    others = [
        row(shape=shape, provider="favorcast reference", p50_ms="20", roofline_percent="3", **driver),
        row(shape=shape, provider="sdpa flash", p50_ms="40", **driver),
    ]
    results_file.append(tmp_path / "a-gpu.csv", [row(p50_ms="", status="wrong", **kernels), *others])
    assert all(targets.UNMEASURED in line for line in targets.table(tmp_path).splitlines()[2:])
    slow = [
        row(shape=shape.replace("4096", length), provider=provider, p50_ms=ms, **driver)
        for length in ("4096", "16384")
        for provider, ms in (("favorcast triton", "100"), ("sdpa flash", "40"))
    ]
    results_file.append(tmp_path / "a-gpu.csv", slow)
    assert "not reached (crossover)" in targets.table(tmp_path).splitlines()[3]


README, KERNELS_README, BENCH_README = (ROOT / folder / "README.md" for folder in ("", "kernels", "bench"))


def table_below(readme: Path, header: str) -> list[list[str]]:
    """Return the cells of a Markdown table by how its header begins, without bold marks."""
    lines = readme.read_text(encoding="utf-8").replace("**", "").partition(f"\n{header}")[2].splitlines()[2:]
    rows = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


def test_the_readme_lists_the_targets():
    readme = KERNELS_README.read_text(encoding="utf-8")
    for target in targets.TARGETS:
        assert f"| {target.what} | {target.wanted} |" in readme
    assert targets.table(targets.FOLDER, "^$").splitlines()[-1] in readme  # what a CPU can tell


def measured(op: str, shape: str, provider: str, passes: str = "forward+backward") -> float:
    """Return the newest milliseconds of a row of the CPU's result file."""
    wanted = {"op": op, "shape": shape, "provider": provider, "pass": passes}
    rows = results_file.latest(results_file.read(targets.FOLDER / "cpu.csv"))
    (row,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return float(row["p50_ms"] or "nan")


def is_rounded(shown: str, exact: float) -> bool:
    """Whether a cell is a number to the digits it shows; a dash stands for none."""
    if shown == "—":
        return math.isnan(exact)
    number = shown.removesuffix(" ms")
    digits = len(number.partition(".")[2])
    unit = 10.0**-digits if digits else 10.0 ** (len(number) - len(number.rstrip("0")))
    return abs(float(number) - exact) <= 0.501 * unit


ATTENTION = (
    *(("favor full", "favorcast reference"), ("favor full", "performer-pytorch")),
    *(("favor full", "sdpa"), ("favor causal", "favorcast reference"), ("favor causal", "sdpa")),
)
LAYER = ("favorcast reference", "performer-pytorch", "nn.MultiheadAttention")


def test_the_attention_times_of_the_readme_are_those_of_the_result_file():
    rows = table_below(KERNELS_README, "| b, heads, length")
    assert len(rows) == 8
    for sizes, ours, theirs, ratio, *others in rows:
        shape = "b{}-h{}-l{}-d{}-m{}".format(*sizes.split(", "))
        for (op, provider), shown in zip(ATTENTION, (ours, theirs, *others), strict=True):
            assert is_rounded(shown, measured(op, shape, provider)), (shape, op, provider)
        exact = [measured("favor full", shape, provider) for _, provider in ATTENTION[:2]]
        assert is_rounded(ratio, exact[0] / exact[1])


def test_the_layer_times_of_the_readme_are_those_of_the_result_file():
    rows = table_below(KERNELS_README, "| length | `FavorAttention`")
    assert len(rows) == 7
    for length, *cells in rows:
        for provider, cell in zip(LAYER, cells, strict=True):
            for passes, shown in zip(("forward", "forward+backward"), cell.split(" / "), strict=cell != "—"):
                assert is_rounded(shown, measured("layer", f"b1-h8-l{length}-d64-m256", provider, passes))


def test_the_first_readme_shows_times_of_the_result_file():
    text = README.read_text(encoding="utf-8").replace("**", "")
    for length in (256, 4096):
        (line,) = [line for line in text.splitlines() if line.startswith("|") and f" {length} tokens" in line]
        ours, softmax, performer = re.findall(r"([\d.]+) ms", line)
        exact = {"sdpa": softmax, "performer-pytorch": performer, "favorcast reference": ours}
        for provider, shown in exact.items():
            assert is_rounded(shown, measured("favor full", f"b1-h8-l{length}-d64-m256", provider))


def test_the_bench_readme_says_what_each_command_measures():
    listed = [row[0].strip("`") for row in table_below(BENCH_README, "| command | what it tells")]
    assert sorted(listed) == sorted(runpy.run_path(str(ROOT / "bench" / "__main__.py"), run_name="bench")["commands"]())


def test_a_difference_counts_where_both_quantiles_show_it():
    base = Latency(1.0, 1.0, 1.0)
    assert revisions.verdict(base, Latency(1.06, 1.2, 1.3)) == "slower"
    assert revisions.verdict(base, Latency(1.04, 1.2, 1.3)) == "same"
    assert revisions.verdict(base, Latency(0.9, 0.9, 1.3)) == "faster"


class Side:
    """A revision whose calls take given milliseconds, or which fails to prepare them."""

    def __init__(self, milliseconds: float = 1.0, failure: str = "", is_graph: bool = False) -> None:
        self.milliseconds, self.samples = milliseconds, 0
        self.prepared = {"failure": failure} if failure else {"estimate_ms": milliseconds, "is_graph": is_graph}

    def ask(self, *, request: str, **case: object) -> Any:
        if request == "prepare":
            return self.prepared
        self.samples += 1
        return self.milliseconds


@pytest.mark.parametrize(
    ("base", "new", "said", "shown"),
    [
        (Side(1.0), Side(1.2), "slower", "1.200 SLOWER"),
        (Side(1.0), Side(1.04), "same", "1.040"),
        (Side(1.2), Side(1.0), "faster", "0.833 faster"),
        (Side(), Side(failure="it is wrong"), "failed", "not compared: it is wrong"),
        (Side(failure="no such operation"), Side(), "new", "not compared: no such operation"),
        (Side(), Side(is_graph=True), "new", "only one side can be captured"),
    ],
    ids=["slower", "same", "faster", "failed", "new", "graph"],
)
def test_revisions_are_measured_in_turn_and_a_regression_is_flagged(
    base: Side, new: Side, said: str, shown: str, capsys: pytest.CaptureFixture[str]
):
    case = [0, "favor full", "forward"]
    assert revisions._compare_case(base, new, case, quick=True) == said  # pyright: ignore[reportArgumentType]
    assert shown in capsys.readouterr().out
    assert base.samples == new.samples


def test_a_target_names_each_form_of_a_peer(tmp_path: Path):
    case = {"op": "decomposition", "shape": targets.LARGE_SERIES[1]}
    measured = [
        row(provider="favorcast triton", p50_ms="1", **case),
        row(provider="AvgPool1d", p50_ms="8", **case),
        row(provider="AvgPool1d compiled", p50_ms="5", **case),
    ]
    results_file.append(tmp_path / "a-gpu.csv", measured)
    (line,) = (line for line in targets.table(tmp_path).splitlines() if "AvgPool1d" in line.split("|")[1])
    assert "8x (AvgPool1d, " in line
    assert "5x (AvgPool1d compiled, " in line


def test_the_commit_of_a_plain_copy_is_a_hash_of_its_sources(tmp_path: Path):
    (tmp_path / "kernels").mkdir()
    source = tmp_path / "kernels" / "a.py"
    source.write_text("x = 1\n")
    first = machine.commit(tmp_path)
    source.write_text("x = 2\n")
    assert first.startswith("source-")
    assert machine.commit(tmp_path) != first
    assert machine.commit(tmp_path, "bench") == machine.commit(tmp_path)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "run.py").write_text("y = 1\n")
    assert machine.commit(tmp_path, "bench") != machine.commit(tmp_path)


def test_every_edit_of_a_checkout_has_a_name_of_its_own(tmp_path: Path):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    (tmp_path / "kernels").mkdir()
    source = tmp_path / "kernels" / "a.py"
    source.write_text("x = 1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = machine.commit(tmp_path)
    names = {clean}
    for line in ("x = 2\n", "x = 3\n"):
        source.write_text(line)
        names.add(machine.commit(tmp_path))
    assert len(names) == 3
    assert all(name.startswith(clean) for name in names)
    source.write_text("x = 1\n")
    (tmp_path / "results.csv").write_text("1\n")
    assert machine.commit(tmp_path, "bench") == clean


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage\nfoo,bar\n", "is no result file: expected the columns"),
        (b"\xff\xfe\x00", "is no result file"),
        (
            ",".join(results_file.FIELDS).encode() + b"\nfavor full,a" + b"," * 6 + b"abc\n",
            "line 2: p20_ms should be a number",
        ),
    ],
    ids=["columns", "binary", "number"],
)
def test_a_damaged_file_is_named_and_kept(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "cpu.csv"
    path.write_bytes(content)
    with pytest.raises(results_file.ResultFileError, match=message):
        results_file.append(path, [row()])
    assert path.read_bytes() == content
