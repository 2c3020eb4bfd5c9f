"""What every other room stands on: files, memory, precision, the hub's files, tables."""
