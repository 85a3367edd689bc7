"""Logs as events with fields, and the ids that tie them together."""

import logging
import sys
from typing import Any

import structlog


def configure_logging(*, process: str, format: str, level: str) -> None:
    """Logs go to stderr, one event a line. Ids bound with `structlog.contextvars` (request_id, tenant, job_id,
    task_id, trace_id) stand on every event that follows in the same task."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.EventRenamer("event"),
    ]
    # Plain tracebacks: the rich ones print local variables, and with them API keys.
    last = (
        structlog.processors.JSONRenderer()
        if format == "json"
        else structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, last] if format == "json" else [*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    # Libraries speak through the standard library: their warnings join ours, their chatter does not.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=last, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # It logs as an error what it tells its caller as well, and who was reached.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
