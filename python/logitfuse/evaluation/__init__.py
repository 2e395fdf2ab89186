"""Measuring what an ensemble is worth: questions, outcomes, statistics, reports."""
