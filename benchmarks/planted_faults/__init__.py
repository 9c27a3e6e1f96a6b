"""Plant faults into photo sets, and count which of them the inspect stage finds."""
