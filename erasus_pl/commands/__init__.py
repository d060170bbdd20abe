"""Verbs that need no model: plain functions that start without torch."""
