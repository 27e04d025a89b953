"""Stories: where they come from, how they are cleaned and split, and their words."""
