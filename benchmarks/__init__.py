"""Times and figures of trained heads; not installed."""
