"""Hides messages of other packages that would confuse users of this one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced(*loggers: str, level: int = logging.ERROR) -> Iterator[None]:
    """Hides warnings, and messages of loggers below a level.

    Args:
        loggers: Names of loggers; "" is the root logger.
        level: Lowest level that they still write.
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
