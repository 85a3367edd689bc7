"""What a relay counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class RelayMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.released = Counter(
            "wharf_tasks_released", "Tasks put into the queue", ["pool", "priority"], registry=self.registry
        )
        self.refused = Counter(
            "wharf_messages_refused",
            "Messages that RabbitMQ did not take: `returned` by a missing queue, `nacked`, or `unconfirmed`",
            ["pool", "reason"],
            registry=self.registry,
        )
        self.lost = Counter(
            "wharf_tasks_released_again", "Tasks whose messages the queue had lost", ["pool"], registry=self.registry
        )
        self.dead_letters = Counter(
            "wharf_dead_letters",
            "Dead letters by what became of them: `dispatched` again, `void`, or why they were none of ours",
            ["outcome"],
            registry=self.registry,
        )
        self.pools = Gauge("wharf_relay_pools", "Pools that this relay looks after", registry=self.registry)
