"""The HTTP server: models behind an API, and a page to try them on."""
