"""Labels and the web application: the store, the label sources, the pages. No torch at import."""
