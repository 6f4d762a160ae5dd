"""The process: threads, clocks, the console, signals, memory, compiled loops."""
