"""A sweep on its way: seen, watched, read, cancelled."""
