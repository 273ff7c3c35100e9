"""Ratios, shares of the floor and growth, by hand; and how they are shown."""

import io

import pytest
from rich.console import Console

from bench_records import measured
from prefrec_lab.bench.report import tables, write_results
from prefrec_lab.bench.results import peak_flops, results_of
from prefrec_lab.bench.settings import BenchSettings

WAYS = ("published", "prefrec")
SETTINGS = BenchSettings(negatives=(1, 3), methods=WAYS, sections=("growth", "steps"), budget_minutes=7)
RATES = {"square": 50.0, "square_cpu": 25.0, "layers": 20.0, "layers_cpu": 10.0}


@pytest.fixture
def records():
    """Two rows a repetition: 40 s by the published way, 4 s by prefrec at N = 3, 2 s at N = 1 in the growth."""
    out = [measured(r, 40.0, facts={"logps/chosen": -3.0}) for r in (1, 2)]
    out += [measured(r, 4.0, method="prefrec", facts={"logps/chosen": -3.25}) for r in (1, 2)]
    out += [measured(r, 4.0, method="matmul", facts=RATES) for r in (1, 2)]
    out += [measured(1, t, method="prefrec", negatives=n, section="growth") for n, t in ((1, 2.0), (3, 5.0))]
    out.append({"kind": "workload", "section": "steps", "negatives": 3, "method": "prefrec", "floor_flops": 30.0})
    out.append({"kind": "session", "environment": {"threads": 2, "torch": "2.13", "commit": "abc"}})
    return out


def test_ratios_to_prefrec_and_shares_of_the_floor(records):
    results = results_of(SETTINGS, records, gpu=False)
    lines = {(x.summary.negatives, x.summary.method): x for x in results.lines_of("steps")}
    slow, fast = lines[3, "published"], lines[3, "prefrec"]
    assert (slow.times, slow.memory, fast.times) == (10.0, 10.0, 1.0)
    # 30 FLOPs a row at 25 a second of CPU are 1.2 s, of 2 s measured; at the layers' 10 a second 3 s.
    assert (fast.share_square, fast.share_layers, slow.share_square) == pytest.approx((0.6, 1.5, 0.06))
    assert (results.growth, results.rates["steps 3"], results.disagreement) == ({1: 1.0, 3: 2.5}, RATES, 0.25)


def test_flops_a_second_are_those_of_wall_time(records):
    """30 FLOPs a row; prefrec takes 2 s of CPU for it, and 1 s by the wall, the published way 20 and 10."""
    for gpu in (False, True):
        results = results_of(SETTINGS.model_copy(update={"peak_tflops": 50e-12}), records, gpu=gpu)
        lines = {x.summary.method: x for x in results.lines_of("steps") if x.summary.negatives == 3}
        assert (lines["prefrec"].flops, lines["published"].flops) == (30.0, 3.0)
        assert (lines["prefrec"].utilisation, lines["published"].utilisation) == pytest.approx((0.6, 0.06))
    without = [r for r in records if r.get("method") != "matmul"]
    line = next(x for x in results_of(SETTINGS, without, gpu=True).lines_of("steps") if x.summary.method == "prefrec")
    assert line.utilisation is None
    assert "MFU" in str(shown(results_of(SETTINGS, records, gpu=True)))


@pytest.mark.parametrize(
    ("gpu", "changes", "peak"),
    [
        *(("NVIDIA H100 80GB HBM3", {}, 989.4), ("NVIDIA H100 PCIe", {}, 756.0), ("NVIDIA L4", {}, 121.0)),
        *(("NVIDIA L40", {}, None), (None, {}, None), ("NVIDIA H100 PCIe", {"peak_tflops": 5}, 5.0)),
        ("NVIDIA H100 PCIe", {"dtype": "float32"}, None),
    ],
)
def test_the_peak_of_a_device(gpu, changes, peak):
    settings = SETTINGS.model_copy(update={"dtype": "bfloat16"} | changes)
    found = peak_flops(settings, [{"kind": "session", "environment": {"gpu": gpu}}])
    assert found == (None if peak is None else pytest.approx(peak * 1e12))


def shown(results, sessions=()) -> str:
    out = io.StringIO()
    Console(file=out, width=250).print(tables(results, list(sessions)))
    return out.getvalue()


def test_what_was_not_measured_has_a_line_that_says_so(records):
    results = results_of(SETTINGS, records, gpu=False)
    lines = {(x.summary.negatives, x.summary.method): x for x in results.lines_of("steps")}
    assert list(lines) == [(1, "published"), (1, "prefrec"), (3, "published"), (3, "prefrec")]
    assert lines[1, "published"].summary.note == "not run: budget of 7 min"
    assert lines[1, "published"].times is None
    text = shown(results, [{"threads": 2, "torch": "2.13", "commit": "abc"}])
    for part in ("10.00×", "60%", "not run: budget of 7 min", "N=3: 2.50×", "agree on the chosen", "commit abc"):
        assert part in text


def test_a_plot_of_nothing_is_a_plot(tmp_path):
    write_results(SETTINGS, results_of(SETTINGS, [], gpu=False), tmp_path)
    assert (tmp_path / "bench.png").is_file()
