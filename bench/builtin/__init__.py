"""The bundled base model, its scorer and data sets, and the recipe that made them."""
