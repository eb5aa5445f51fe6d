"""One reader per data set; each returns `Samples`."""
