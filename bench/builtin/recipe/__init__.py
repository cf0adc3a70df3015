"""How the bundled base model, scorer and data sets were made; nothing here runs in a search."""
