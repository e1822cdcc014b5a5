"""Logs: an event's name and fields, through the standard library's handlers, which an embedding program owns."""

import logging

import structlog


def logger() -> structlog.stdlib.BoundLogger:
    """The process's logger, named ``vecdb``."""
    log: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger("vecdb"), wrapper_class=structlog.stdlib.BoundLogger,
        processors=[structlog.stdlib.filter_by_level, structlog.processors.format_exc_info,
                    structlog.processors.KeyValueRenderer(key_order=["event"])])
    return log
