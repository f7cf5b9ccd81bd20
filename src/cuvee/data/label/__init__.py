"""Labels: documents get other domains, by a column, by clusters or by a classifier."""
