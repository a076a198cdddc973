"""The metrics of a mount in Prometheus' form: read from where they are counted when somebody asks.

Names, types and help texts of all of them are here; docs/observability.md has the same table. No label takes
its values from names of topics or groups: their number has no limit.

prometheus-client is imported when somebody asks for the first time: a mount that nobody watches has none of
it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from importlib import import_module
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import trio

from dnpipefs.cluster import VERSION, Cluster
from dnpipefs.metrics import Histogram, Requests

if TYPE_CHECKING:
    from prometheus_client.core import Metric

ENCODERS: Final = 1
"""How many texts are made at once: it is work for a CPU that pushes need, too."""


OPEN_METRICS_TYPE: Final = b"application/openmetrics-text"


class Form(enum.Enum):
    """How metrics are written; the value is the content type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Exposition:
    """Tells the metrics of one mount."""

    def __init__(self, cluster: Cluster, requests: Requests) -> None:
        self._cluster: Final = cluster
        self._requests: Final = requests
        self._encoding: Final = trio.CapacityLimiter(ENCODERS)

    async def text(self, form: Form = Form.TEXT) -> bytes:
        """Return all metrics."""
        async with self._encoding:
            # It takes a tenth of a second, the first time.
            await trio.to_thread.run_sync(import_module, "prometheus_client")
            from prometheus_client import ProcessCollector, generate_latest
            from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics

            found = list(self.metrics())

            class Moment:
                """Metrics as they were in one moment, for the encoder."""

                @staticmethod
                def collect() -> Iterator[Metric]:
                    yield from found
                    yield from ProcessCollector(registry=None).collect()

            encode = generate_latest if form is Form.TEXT else generate_open_metrics
            return await trio.to_thread.run_sync(encode, Moment)

    def metrics(self) -> Iterator[Metric]:
        """Yield all that are dnpipefs' own, as they are now."""
        yield from self._mount()
        yield from self._requests_of_the_kernel()
        yield from self._pushes()
        yield from self._reads()
        yield from self._groups()
        yield from self._etcd()

    def _mount(self) -> Iterator[Metric]:
        from prometheus_client.core import InfoMetricFamily

        sessions, staleness = self._cluster.log.sessions, self._cluster.barrier.staleness
        yield InfoMetricFamily("dnpipefs_build", "The release of the daemon.", {"version": VERSION})
        yield _gauge(
            "dnpipefs_session_healthy",
            "1 while etcd has confirmed this host's session within its time to live, else 0.",
            sessions.healthy,
        )
        yield _counter(
            "dnpipefs_sessions", "Sessions begun: more than one means that some were lost.", sessions.begun
        )
        yield _gauge(
            "dnpipefs_reads_stale",
            "1 while readers get what this host has, since etcd does not answer (--read-stale), else 0.",
            staleness.since is not None,
        )
        yield _gauge(
            "dnpipefs_names",
            "Topics and directories of the cluster, as this host has them in memory.",
            len(self._cluster.namespace.tree),
        )

    def _requests_of_the_kernel(self) -> Iterator[Metric]:
        requests = self._requests
        yield _histograms(
            "dnpipefs_fuse_request_seconds",
            "Requests of the kernel, from taking one to its answer; reads that wait for messages left out.",
            "operation",
            requests.took,
        )
        yield _counters(
            "dnpipefs_fuse_errors",
            "Requests that failed, by the class of error in docs/semantics.md; Unexpected is a fault.",
            "kind",
            requests.failed,
        )
        yield _gauge("dnpipefs_open_files", "Files that programs have open.", requests.open_files)
        yield _gauge("dnpipefs_blocked_reads", "Reads that wait for messages now.", requests.blocked_reads)
        yield _counter("dnpipefs_read_bytes", "Bytes that programs have read.", requests.read_bytes)

    def _pushes(self) -> Iterator[Metric]:
        queue, pushes = self._cluster.log.queue, self._cluster.log.pushes
        yield _counter("dnpipefs_pushed_messages", "Messages that this host has pushed.", pushes.messages)
        yield _counter(
            "dnpipefs_pushed_bytes", "Bytes of the messages that this host has pushed.", pushes.bytes
        )
        yield _counter("dnpipefs_batches", "Batches that this host has committed.", pushes.batches)
        yield _histogram(
            "dnpipefs_batch_wait_seconds",
            "How long pushes waited until a transaction took them along, beginning with the write.",
            pushes.waited,
        )
        yield _histogram(
            "dnpipefs_commit_seconds",
            "Transactions that commit batches, from sending one to its answer.",
            pushes.committed,
        )
        yield _gauge("dnpipefs_queued_bytes", "Bytes of pushes under way on this host.", queue.bytes)
        yield _gauge("dnpipefs_queued_topics", "Topics whose pushes wait for a transaction.", queue.topics)
        yield _gauge(
            "dnpipefs_commits_under_way", "Transactions under way that commit batches.", queue.commits
        )

    def _reads(self) -> Iterator[Metric]:
        log, questions = self._cluster.log, self._cluster.barrier.questions
        use = log.content.use
        yield _histogram(
            "dnpipefs_confirm_seconds",
            "How long etcd took to say where a topic stands, at ends of files and opens of followed topics.",
            questions.answered,
        )
        yield _histogram(
            "dnpipefs_view_lag_seconds",
            "How long readers waited then, until this host had seen as much as etcd had.",
            questions.lag,
        )
        yield _gauge("dnpipefs_views", "Topics that this host follows.", log.followed)
        yield _counter("dnpipefs_cache_hits", "Batches and segments that were found in memory.", use.hits)
        yield _counter(
            "dnpipefs_cache_misses", "Batches and segments that were fetched from etcd.", use.misses
        )
        yield _gauge("dnpipefs_cache_bytes", "Memory that the cache takes.", log.content.size)
        yield _gauge("dnpipefs_cache_limit_bytes", "Memory that the cache may take.", log.content.limit)

    def _groups(self) -> Iterator[Metric]:
        groups = self._cluster.groups
        counted, lags = groups.counted, list(groups.lags())
        yield _counter(
            "dnpipefs_group_deliveries", "Messages handed to readers of groups.", counted.delivered
        )
        yield _counter(
            "dnpipefs_group_redeliveries",
            "Messages handed to readers of groups that one had had before.",
            counted.again,
        )
        yield _counter(
            "dnpipefs_group_acknowledgements",
            "Messages that readers of groups were done with.",
            counted.acknowledged,
        )
        yield _counter(
            "dnpipefs_group_returns",
            "Messages that readers of groups gave back, or had for too long.",
            counted.given_back,
        )
        yield _counter("dnpipefs_dead_letters", "Messages moved to the dead letters.", counted.dead)
        yield _gauge("dnpipefs_groups", "Consumer groups that this host takes part in.", len(lags))
        yield _gauge(
            "dnpipefs_group_lag_messages",
            "Messages of the groups of this host that nobody has, or that it has and has not acknowledged.",
            sum(lags),
        )
        yield _gauge(
            "dnpipefs_group_lag_messages_max",
            "The same of the group that is furthest behind.",
            max(lags, default=0),
        )

    def _etcd(self) -> Iterator[Metric]:
        client = self._cluster.client
        yield _histograms(
            "dnpipefs_etcd_call_seconds", "Calls to etcd with their repeats.", "method", client.calls.took
        )
        yield _counters(
            "dnpipefs_etcd_failures",
            "Calls to etcd that failed, by the class of error.",
            "kind",
            client.calls.failed,
        )
        yield _gauges(
            "dnpipefs_etcd_endpoint_up",
            "1 if the last call to this endpoint was answered, else 0.",
            "endpoint",
            {name: failure is None for name, failure in client.endpoints()},
        )


def _gauge(name: str, text: str, value: float) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, text, value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(name, text, value)


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    return HistogramMetricFamily(name, text, buckets=_buckets(histogram), sum_value=histogram.sum)


def _histograms(name: str, text: str, label: str, values: Mapping[str, Histogram]) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, text, labels=[label])
    for key, histogram in values.items():
        family.add_metric([key], _buckets(histogram), histogram.sum)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Return the classes as Prometheus has them: how many there were up to each bound."""
    bounds = [*map(str, histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))
