"""What the routes are given: the parts of one broker process, wired in `broker.command`."""

import asyncio
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from broker.backlog import Backlog
from broker.cluster import ClusterView
from broker.media import Prober
from broker.metrics import BrokerMetrics
from broker.readiness import Readiness
from broker.room import Room
from broker.settings import BrokerSettings
from custody.audit import Audit
from custody.database import Database
from custody.files import Files
from custody.jobs import Jobs
from custody.notices import Notices
from custody.tasks import Tasks
from custody.volume import Volume


@dataclass(frozen=True)
class Service:
    settings: BrokerSettings
    database: Database
    volume: Volume
    files: Files
    jobs: Jobs
    tasks: Tasks
    audit: Audit
    backlog: Backlog
    notices: Notices
    probe: Prober
    readiness: Readiness
    room: Room
    metrics: BrokerMetrics
    cluster: ClusterView
    stopping: asyncio.Event


# No plain function: each request would call it in another thread.
async def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(service_of)]
