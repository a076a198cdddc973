"""A run of the benchmark: measurements one after another, their arms by turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from dnpipefs.bench.figures import Sample, cpu_per_operation, evaluate, percentile
from dnpipefs.bench.growth import GROWTH
from dnpipefs.bench.measurements import BESIDE_RAW, Arm, Measurement, Scale
from dnpipefs.bench.queues import QUEUES
from dnpipefs.bench.report import Report
from dnpipefs.bench.stage import WHOLE_MACHINE, Stage, open_stage
from dnpipefs.cluster import Settings

MEASUREMENTS: Final = (*BESIDE_RAW, QUEUES, GROWTH)
"""Growth last: mounts have topics to seal for minutes after it."""
WARM_UP_S: Final = 0.2
"""Each arm runs that long once before it counts: caches, connections, code paths."""


async def run_bench(
    settings: Settings,
    measurements: Sequence[Measurement],
    scale: Scale,
    *,
    throwaway: bool,
    progress: Callable[[str], None],
) -> Report:
    """Measure and return the report; see `open_stage` for *throwaway*.

    Raises MeasurementFailed, SetupError, or what says why etcd cannot be used.
    """
    results, cpu = [], {}
    all_samples: list[Sample] = []
    async with open_stage(settings, throwaway=throwaway) as (stage, machine):
        for measurement in measurements:
            progress(f"{measurement.id}: {measurement.title}")
            samples = await _measure(stage, measurement, scale)
            results += [evaluate(measurement.id, line, samples) for line in measurement.lines(scale)]
            all_samples += [sample for taken in samples.values() for sample in taken]
            cpu[measurement.id] = {arm: cpu_per_operation(taken) for arm, taken in samples.items()}
    machine["rounds"] = f"{scale.rounds} of {scale.seconds:g} s each; medians"
    machine["others"] = (
        f"{percentile([sample.others_cpus for sample in all_samples], 0.5):.2f} CPUs busy meanwhile"
    )
    return Report(machine, results, cpu)


async def _measure(stage: Stage, measurement: Measurement, scale: Scale) -> dict[str, list[Sample]]:
    async with measurement.arms(stage, scale) as arms:
        names = list(arms)
        samples: dict[str, list[Sample]] = {name: [] for name in names}
        for name in names:
            await arms[name].prepare()
            await arms[name].run(min(WARM_UP_S, scale.seconds))
        for number in range(min(scale.rounds, measurement.most_rounds or scale.rounds)):
            first = 0 if measurement.keep_order else number % len(names)  # nobody always goes first
            for name in (*names[first:], *names[:first]):
                samples[name].append(await _sample(stage, arms[name], scale.seconds))
        return samples


async def _sample(stage: Stage, arm: Arm, seconds: float) -> Sample:
    await arm.prepare()
    before, begun = stage.start.cpu(), time.monotonic()
    sample = await arm.run(seconds)
    after, took = stage.start.cpu(), time.monotonic() - begun
    used = {role: seconds - before.get(role, 0.0) for role, seconds in after.items()}
    others = used.pop(WHOLE_MACHINE) - sum(used.values())
    return replace(sample, cpu_seconds=used, others_cpus=max(0.0, others / took))
