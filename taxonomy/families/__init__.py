"""One file a pruning family, each with a constant FAMILY; `taxonomy.family` finds them all."""
