"""The machine and the processes that a run has: devices, ranks, seeds, interrupts."""
