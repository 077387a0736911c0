"""Work models of operators: one decorated function from a call's shapes to FLOPs and bytes."""
