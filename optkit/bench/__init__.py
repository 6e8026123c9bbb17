"""The stopwatch: latency ratios that can be trusted."""
