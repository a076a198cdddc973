"""The two forms of a report."""

import json
import math

from dnpipefs.bench.figures import Bar, Line, Quantity, Result, Spread
from dnpipefs.bench.report import Report, as_json, as_table

LATENCY = Result(
    "P1",
    Line("write, p50", Quantity.P50, "write", "raw", Bar(1.5, at_most=True)),
    Spread(1.2, 1.1, 1.9),
    Spread(1.0, 0.9, 1.1),
    Spread(1.2, 1.0, 1.8),
)
WARM = Result(
    "P4",
    Line("warm", Quantity.THROUGHPUT, "warm", bar=Bar(1000, at_most=False, absolute=True, binding=False)),
    Spread(549.4, 500.0, 600.0),
    None,
    None,
)
NOTHING = Result(
    "P2",
    Line("many", Quantity.RATE, "many", "raw", Bar(2, at_most=False)),
    Spread(math.nan, math.nan, math.nan),
    Spread(12345.0, 1.0, 99999.0),
    Spread(math.nan, math.nan, math.nan),
)


def report(*results: Result) -> Report:
    return Report({"etcd": "3.4.23"}, results, {"P1": {"raw": {"client": 1.2, "etcd": 345.6}}})


def test_the_table_has_a_line_for_each_figure() -> None:
    lines = as_table(report(LATENCY, WARM, NOTHING)).splitlines()
    assert lines[0] == "etcd: 3.4.23"
    assert [line.split() for line in lines[2:6]] == [
        ["what", "dnpipefs", "raw", "etcd", "ratio", "in", "the", "rounds", "bar"],
        ["P1", "write,", "p50", "1.20", "ms", "1.00", "ms", "1.20", "1.00-1.80", "≤", "1.5", "pass"],
        ["P4", "warm", "549", "MB/s", "(≥", "1,000", "MB/s)", "below"],
        ["P2", "many", "nan", "/s", "12,345", "/s", "nan", "nan-nan", "≥", "2", "fail"],
    ]
    assert lines[-1].split() == ["P1", "raw", "client", "1", "etcd", "346"]


def test_columns_stand_below_one_another() -> None:
    lines = as_table(report(LATENCY, WARM)).splitlines()
    assert lines[2].index("dnpipefs") == lines[3].index("1.20 ms") == lines[4].index("549 MB/s")


def test_the_document_is_json_whatever_was_measured() -> None:
    document = json.loads(as_json(report(LATENCY, WARM, NOTHING)))
    latency, warm, nothing = document["results"]
    assert latency == {
        "id": "P1",
        "what": "write, p50",
        "unit": "p50 ms",
        "dnpipefs": {"median": 1.2, "lowest": 1.1, "highest": 1.9},
        "raw": {"median": 1.0, "lowest": 0.9, "highest": 1.1},
        "ratio": {"median": 1.2, "lowest": 1.0, "highest": 1.8},
        "bar": {"limit": 1.5, "kind": "at most", "of": "ratio", "binding": True},
        "verdict": "pass",
    }
    assert (warm["raw"], warm["ratio"], warm["bar"]["of"]) == (None, None, "figure")
    assert nothing["ratio"]["median"] is None  # NaN is not JSON
    assert document["machine"] == {"etcd": "3.4.23"}


def test_only_binding_bars_decide() -> None:
    assert report(LATENCY, WARM).passed
    assert not report(LATENCY, NOTHING).passed
