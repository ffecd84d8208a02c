"""Engines: one class per kind of store, behind one small protocol (`contract.py`)."""

from .s3_arguments import ArgumentErrors
from .spec import EngineSpec, parse_engine

__all__ = ["ArgumentErrors", "EngineSpec", "parse_engine"]
