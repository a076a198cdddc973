"""`dnpipefs bench`: how fast the mount is, beside raw etcd through the same client in the same run.

`figures` turns samples into figures and verdicts and `report` prints them, both pure; `measurements`
and `growth` say what is measured and how; `stage` sets up etcd, mounts and the processes that do the
work and takes all of it down again; `host` and `load` are the programs of those processes, `fill` makes
many topics in little time.
"""

from typing import Final

from dnpipefs.bench.growth import GROWTH
from dnpipefs.bench.measurements import BESIDE_RAW, Measurement, Scale
from dnpipefs.bench.queues import QUEUES
from dnpipefs.bench.report import Report, as_json, as_table
from dnpipefs.bench.runner import run_bench

MEASUREMENTS: Final = (*BESIDE_RAW, QUEUES, GROWTH)
"""Growth last: mounts have topics to seal for minutes after it."""

__all__ = ["MEASUREMENTS", "Measurement", "Report", "Scale", "as_json", "as_table", "run_bench"]
