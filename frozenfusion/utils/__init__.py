"""What every room needs and no room owns: errors, whole-or-nothing files, locks, progress, tables, digests."""
