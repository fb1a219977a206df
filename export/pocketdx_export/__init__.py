"""PocketDx export room."""
