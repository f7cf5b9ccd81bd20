"""`cuvee dash`: a live local page over a store, which only reads it."""
