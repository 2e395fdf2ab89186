"""How good an ensemble is: data sets, outcomes, statistics, reports."""
