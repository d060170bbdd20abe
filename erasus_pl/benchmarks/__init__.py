"""Benchmarks of methods: suites in YAML behind one runner, which goes on where it was stopped."""

from erasus_pl.benchmarks.runner import run_suite
from erasus_pl.benchmarks.suite import Suite, load_suite

__all__ = ["Suite", "load_suite", "run_suite"]
