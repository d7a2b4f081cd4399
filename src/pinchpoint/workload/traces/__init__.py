"""Recorded requests of any known format, read into one table, `table.RequestLog`."""
