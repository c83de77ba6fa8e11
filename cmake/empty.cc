// Keeps the library non-empty while a folder has no sources of its own.
