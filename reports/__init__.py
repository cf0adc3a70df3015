"""HTML reports: a run folder -> one file that opens offline."""
