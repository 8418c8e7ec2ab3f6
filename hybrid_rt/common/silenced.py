"""Hides messages of other packages that would only confuse a user of this one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced(*loggers: str, level: int = logging.ERROR) -> Iterator[None]:
    """Hides warnings, and what loggers write below a level.

    Args:
        loggers: names of loggers; an empty one is the root.
        level: the lowest level that they still write.
    """
    found = [logging.getLogger(name) for name in loggers]
    before = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, former in zip(found, before, strict=True):
            logger.setLevel(former)
