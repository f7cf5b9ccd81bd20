"""From a table of small runs to the mixture, or the stages, that a target run trains on."""
