"""logs: owns the log format: one JSON object a line on stdout, with the correlation id of what caused it."""

from __future__ import annotations

import logging
import sys

import structlog

from loopbox_agent.mask import mask_processor


def configure_logs(level: str) -> None:
    """Route structlog and the standard library's logging to JSON lines on stdout."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        mask_processor,
    ]
    render = structlog.processors.JSONRenderer(sort_keys=True)
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stdout),
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # The libraries' info lines (one for each HTTP request) say nothing that ours do not.
    root.setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
